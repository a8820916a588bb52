"""The views: what HTTP reads. They can be dropped and are built again from the log."""
