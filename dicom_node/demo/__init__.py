"""The whole way on one machine: a scanner that pushes, the node, an archive that stands in for PACS."""
