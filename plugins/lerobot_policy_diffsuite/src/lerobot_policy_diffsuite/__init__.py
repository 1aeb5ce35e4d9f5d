"""Policies of diffsuite in LeRobot, as the policy type `diffsuite`."""

from .configuration_diffsuite import DiffsuiteConfig
from .modeling_diffsuite import DiffsuitePolicy
from .processor_diffsuite import make_diffsuite_pre_post_processors

__all__ = ["DiffsuiteConfig", "DiffsuitePolicy", "make_diffsuite_pre_post_processors"]
