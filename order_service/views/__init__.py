"""The views: the read model behind HTTP. They can be dropped and are rebuilt from the log."""
