"""Every foreign convention ends here: files, sheets, formats, coordinate orders."""
