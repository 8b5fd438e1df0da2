"""The API over the stores of analytics: status of notifications; mounted by console/server.py."""
