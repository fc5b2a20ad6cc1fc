"""What a table of finished runs says: every fit, forecast and doubt about it, in one record."""
