"""Data sets as tar files ("shards"), in a folder, behind HTTP, or in S3.

A shard is a tar file whose samples have consecutive members, such as `000000012.jpg` and `000000012.cls` (the number of
the class), as WebDataset expects. The number is the sample's position in its split. `index.json` lists the shards, and
`train.npz` and `val.npz` say where each sample is, so that any sample can be read alone.
"""
