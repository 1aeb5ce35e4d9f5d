"""diffsuite's shared core: diffusion processes, solvers, operators, posteriors, and the frame of a run."""

__version__ = "0.1.0"
