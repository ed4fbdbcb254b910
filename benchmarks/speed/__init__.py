"""batchverify side by side with what people use, and with the limit of the machine; `python -m benchmarks.speed`."""
