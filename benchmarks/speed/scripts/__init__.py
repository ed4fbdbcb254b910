"""The contenders. Each module has one function, `score(task)`, written as the documentation of its library shows it."""
