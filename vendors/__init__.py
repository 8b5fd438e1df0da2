"""What each company's API speaks: a folder per vendor, and what they share.

    sender.py     the sender protocol                    registry.py   kind → folder
    provider.py   what every account does alike          reports.py    the protocol of delivery reports
    codes.py      code tables and unknown codes          settings.py   keys of a [[providers]] entry
    http_account.py  an account over HTTP       google_token.py, sigv4.py   tokens and signatures
    http.py, http2.py, mime.py, push_data.py, sms_text.py

Vendors never import each other. May import runtime and schemas. Never: Kafka, a retry.
"""
