"""The truth about studies, reports and deliveries, in SQL."""

from dicom_node.ledger.ledger import Ledger

__all__ = ["Ledger"]
