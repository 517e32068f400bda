"""Files: atomic writes, claims, digests, output folders, shards, contact sheets, folders of captioned images."""
