"""Networks: a graph with its operations, its normal form, its program, and the classes of equal kernels."""

from nngp_dag.architecture._normal_form import NormalForm, normal_form
from nngp_dag.architecture.network import Network
from nngp_dag.architecture.reading import Architecture, NetworkSource, as_network

__all__ = ["Architecture", "Network", "NetworkSource", "NormalForm", "as_network", "normal_form"]
