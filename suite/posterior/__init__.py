from suite.posterior.dds import DDS
METHODS = {"dds": DDS}
