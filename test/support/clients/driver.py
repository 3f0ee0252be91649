# Runs the client of docs/guides/signed-messages.md, which lies beside it as client.py. Keys are in files; what comes out is lines of
# "field value", bytes in base64.
import os, sys
from client import *
from cryptography.hazmat.primitives.serialization import NoEncryption, PrivateFormat


def key(path, kind):
    if not os.path.exists(path):
        made = kind.generate()
        with open(path, "wb") as file:
            file.write(made.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption()))
    with open(path, "rb") as file:
        return kind.from_private_bytes(file.read())


def envelope(fields):
    read = dict(zip(fields[::2], fields[1::2]))
    return {k: int(v) if k in ("version", "timestamp") else v for k, v in read.items()}


def show(fields):
    for field, value in fields.items():
        print(field, value)


command, folder, *rest = sys.argv[1:]
signing = key(os.path.join(folder, "ed25519"), Ed25519PrivateKey)
agreement = key(os.path.join(folder, "x25519"), X25519PrivateKey)

if command == "register":
    show(registration(signing, rest[0], unb64(rest[1])))
elif command == "request":
    show(request(signing, rest[0], unb64(rest[1])))
elif command == "answer":
    sent = {"public_key_id": rest[1], "nonce": rest[2]}
    print("payload", b64(answer(unb64(rest[0]), sent, envelope(rest[3:]))))
elif command == "seal":
    print("public_key", b64(raw(agreement.public_key())))
    print("sealed", b64(seal(agreement, unb64(rest[0]), rest[1].encode(), unb64(rest[2]), rest[3].encode())))
elif command == "unseal":
    print("plaintext", b64(unseal(agreement, unb64(rest[0]), rest[1].encode(), unb64(rest[2]), rest[3].encode())))
elif command == "export":
    from export import export_rows

    with open(rest[0], "rb") as file:
        for row in export_rows(file, unb64(rest[1]), rest[2].encode()):
            print("row", b64(row))
