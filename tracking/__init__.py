"""The API over the stores of analytics: status of notifications; mounted by api/role.py."""
