"""What results depend on beside their options."""

_PACKAGES = ("nngp-dag", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def environment() -> dict[str, str]:
    """Returns the device and the versions of Python and of the packages that compute."""
    import platform
    from importlib.metadata import version

    import jax

    return {
        "device": str(jax.devices()[0].device_kind),
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
    }
