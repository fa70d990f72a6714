"""An evaluation of one model: metrics, tables, pictures, predictions."""
