"""What people said about answers: files in (`formats.load`), records and their views, files out (`formats.write`)."""
