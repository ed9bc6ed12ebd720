"""The bytes: the store, its readers and the meter. Knows tensors; knows neither models nor methods."""
