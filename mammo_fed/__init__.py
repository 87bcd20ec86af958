"""mammo-fed: federated, differentially private training of a breast-mass malignancy classifier."""

from importlib.metadata import version

__all__ = ["__version__"]

__version__ = version("mammo-fed")
