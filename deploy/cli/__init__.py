"""The commands of ``understudy``."""
