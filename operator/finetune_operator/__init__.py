"""The operator: watches FineTuneJobs and runs their attempts."""

__version__ = "0.1.0"
