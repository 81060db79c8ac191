"""TE-NAS: supernets pruned by training-free measures, with files and pictures."""
