"""A Keycloak realm, as a real server on a loopback port with real RS256 keys."""

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from monailabel.config import Settings

from lorkd_monailabel.front_door.realm import Realm
from lorkd_monailabel.front_door.roles import Role
from lorkd_monailabel.front_door.users import Users, realm_of

ROLES = {"monailabel-user": Role.VIEWER, "monailabel-annotator": Role.ANNOTATOR, "monailabel-admin": Role.ADMIN}


def make_key():
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


KEYS = {"one": make_key(), "two": make_key()}


class FakeRealm:
    """The realm's side: which keys it shows, and how often it was asked."""

    def __init__(self) -> None:
        self.shown = ["one"]
        self.asked = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                if self.path.endswith("/.well-known/openid-configuration"):
                    self.reply({"jwks_uri": f"{outer.uri}/keys", "token_endpoint": f"{outer.uri}/token"})
                else:
                    outer.asked += 1
                    keys = [
                        jwt.algorithms.RSAAlgorithm.to_jwk(KEYS[name].public_key(), as_dict=True)
                        for name in outer.shown
                    ]
                    ids = zip(keys, outer.shown, strict=True)
                    self.reply({"keys": [{**key, "kid": name, "use": "sig", "alg": "RS256"} for key, name in ids]})

            def do_POST(self):
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                right = form["username"] == ["anna"] and form["password"] == ["secret"]
                self.reply({"access_token": "a.b.c", "token_type": "Bearer"} if right else {"error": "invalid_grant"})

            def reply(self, body):
                text = json.dumps(body).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self.server.server_port}/realms/hospital"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def token(self, *, key="one", kid=None, algorithm="RS256", **changed):
        claims = {
            "iss": self.uri,
            "aud": "lorkd",
            "exp": time.time() + 60,
            "preferred_username": "anna",
            "realm_access": {"roles": ["monailabel-user", "monailabel-annotator", "other"]},
        }
        claims = {name: value for name, value in {**claims, **changed}.items() if value is not None}
        secret = KEYS[key] if isinstance(key, str) else key
        return jwt.encode(
            claims, secret, algorithm=algorithm, headers={"kid": kid or (key if isinstance(key, str) else "one")}
        )


@pytest.fixture
def fake():
    realm = FakeRealm()
    yield realm
    realm.server.shutdown()
    realm.server.server_close()


@pytest.fixture
def realm(fake):
    return Realm(fake.uri, client="lorkd", roles=ROLES, pause=0, timeout=5)


def test_name_and_highest_role(fake, realm):
    assert realm.user(fake.token()) == ("anna", Role.ANNOTATOR)
    assert realm.user(fake.token(realm_access={"roles": []})) == ("anna", Role.ANYONE)
    assert realm.user(fake.token(realm_access=None, preferred_username=None, sub="17")) == ("17", Role.ANYONE)


def test_made_for_us_or_by_us(fake, realm):
    assert realm.user(fake.token(aud=["account", "lorkd"]))
    assert realm.user(fake.token(aud="account", azp="lorkd"))
    with pytest.raises(PermissionError, match="made for another service than lorkd"):
        realm.user(fake.token(aud="account", azp="other"))
    with pytest.raises(PermissionError, match="made for another service"):
        realm.user(fake.token(aud=None))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"exp": 1}, "ExpiredSignatureError"),
        ({"exp": None}, "MissingRequiredClaimError"),
        ({"iss": "https://evil.example"}, "InvalidIssuerError"),
        ({"iss": None}, "MissingRequiredClaimError"),
        ({"nbf": time.time() + 3600}, "ImmatureSignatureError"),
        ({"key": "two", "kid": "one"}, "InvalidSignatureError"),
        ({"key": "two"}, "PyJWKClientError"),
    ],
)
def test_tokens_that_are_not_valid(fake, realm, changed, message):
    with pytest.raises(PermissionError, match=message):
        realm.user(fake.token(**changed))


def test_public_key_is_no_shared_secret(fake, realm):
    header = base64.urlsafe_b64encode(b'{"alg":"none","kid":"one"}').rstrip(b"=").decode()
    body = fake.token().split(".")[1]
    for token in (f"{header}.{body}.", "no token", "a.b.c", ""):
        with pytest.raises(PermissionError, match="is not valid"):
            realm.user(token)
    numbers = KEYS["one"].public_key().public_numbers().n.to_bytes(256, "big")
    with pytest.raises(PermissionError, match="is not valid"):
        realm.user(fake.token(key=numbers, algorithm="HS256"))


def test_a_new_key_is_fetched_and_an_old_one_forgotten(fake, realm):
    assert realm.user(fake.token())
    assert realm.user(fake.token())
    assert fake.asked == 1
    fake.shown = ["two"]
    assert realm.user(fake.token(key="two"))[0] == "anna"
    assert fake.asked == 2
    with pytest.raises(PermissionError, match="PyJWKClientError"):
        realm.user(fake.token(key="one"))


def test_unknown_keys_do_not_make_it_ask_each_time(fake):
    realm = Realm(fake.uri, client="lorkd", roles=ROLES, pause=60, timeout=5)
    for number in range(5):
        with pytest.raises(PermissionError):
            realm.user(fake.token(key="two", kid=f"key{number}"))
    assert fake.asked == 1


def test_sign_in(fake, realm):
    assert realm.token("anna", "secret") == {"access_token": "a.b.c", "token_type": "Bearer"}
    with pytest.raises(PermissionError, match="does not know this name"):
        realm.token("anna", "wrong")


def test_a_realm_that_is_not_there():
    realm = Realm("http://127.0.0.1:9/realms/x", client="lorkd", roles=ROLES, timeout=2)
    with pytest.raises(ConnectionError, match="can't be reached"):
        realm.user("a.b.c")


def test_monai_labels_settings_make_a_realm(fake):
    settings = Settings(MONAI_LABEL_AUTH_ENABLE=True, MONAI_LABEL_AUTH_REALM_URI=fake.uri)
    users = Users(None, realm_of(settings))
    token = fake.token(aud=settings.MONAI_LABEL_AUTH_CLIENT_ID)
    assert users.required
    assert users.user(f"Bearer {token}") == ("anna", Role.ANNOTATOR)
    for name, role in (("monailabel-trainer", Role.TRAINER), ("monailabel-admin", Role.ADMIN)):
        roles = {"roles": [name, "monailabel-user"]}
        assert users.user(f"bearer {fake.token(aud='monailabel-app', realm_access=roles)}").role is role
    with pytest.raises(PermissionError, match="made for another service than monailabel-app"):
        users.user(f"Bearer {fake.token(aud='account')}")
    assert realm_of(Settings(MONAI_LABEL_AUTH_ENABLE=False)) is None
