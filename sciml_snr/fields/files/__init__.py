"""Images and point clouds in files: one room for each kind."""
