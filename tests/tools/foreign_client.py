"""What one client of a protocol that is neither TLS nor HTTP is told on its port of 127.0.0.1: PROTOCOL."""

import socket
import sys

HOST = "127.0.0.1"


def smtp():
    import smtplib

    smtplib.SMTP(HOST, 25, timeout=60)


def ftp():
    import ftplib

    ftplib.FTP(HOST, timeout=60)


def imap():
    import imaplib

    imaplib.IMAP4(HOST, timeout=60)


def pop3():
    import poplib

    poplib.POP3(HOST, timeout=60)


def said(port, opening):
    """All that the other side says to these bytes."""
    with socket.create_connection((HOST, port), timeout=60) as connection:
        connection.sendall(opening)
        with connection.makefile("rb") as answer:
            return answer.read()


def mysql():
    # A client waits for the server's handshake, which may be an error: length, number, 0xff, code.
    packet = said(3306, b"")
    assert packet[3:7] == b"\0\xff\x6a\x04", packet
    raise OSError(packet[7:].decode())


def redis():
    raise OSError(said(6379, b"*1\r\n$4\r\nPING\r\n").decode())


def postgresql():
    # An error in place of an answer to the request for TLS: type, length, fields.
    message = said(5432, b"\0\0\0\x08\x04\xd2\x16\x2f")
    assert message[:1] == b"E", message
    fields = dict((field[:1], field[1:].decode()) for field in message[5:].split(b"\0") if field)
    assert fields[b"S"] == "FATAL", fields
    raise OSError(fields[b"M"])


def socks():
    raise OSError(said(1080, b"\x05\x01\0").decode())


try:
    globals()[sys.argv[1]]()
except Exception as error:
    print(type(error).__name__, error)
