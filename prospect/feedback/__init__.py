"""What people said about answers: files in (`load.load`), records and their views."""
