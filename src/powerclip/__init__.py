"""powerclip."""
