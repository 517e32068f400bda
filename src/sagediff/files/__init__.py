"""Files: atomic writes, digests, output folders, shards, contact sheets, folders of captioned images."""
