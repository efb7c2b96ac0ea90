def pytest_configure(config):
    # NumPy's own test modules carry these.
    config.addinivalue_line("markers", "slow: NumPy's mark for its longer tests; all of them run here")
    config.addinivalue_line("markers", "thread_unsafe: NumPy's mark for tests that are not to run in threads")
