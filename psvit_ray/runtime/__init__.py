"""Where a run happens: the only floor that imports Ray and MLflow."""
