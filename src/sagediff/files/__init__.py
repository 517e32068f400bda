"""What lies on disk: output folders, shards, contact sheets, folders of captioned images."""
