"""What looks like secrets, put together when it is needed, so that no scanner takes this file for a leak."""

from __future__ import annotations

import base64
import random
import string

_random = random.Random(7)
_ALNUM = string.ascii_letters + string.digits


def word(length: int, alphabet: str = _ALNUM) -> str:
    """A made-up token; always with a letter of each kind."""
    made = "".join(_random.choices(alphabet, k=length - 3))
    return "q7X"[: length - len(made)] + made if alphabet is _ALNUM else made + made[:3]


def hexes(length: int) -> str:
    return "".join(_random.choices("0123456789abcdef", k=length))


GITHUB = "gh" + "p_" + word(36)
AWS = "AK" + "IA" + word(20, string.ascii_uppercase + string.digits)[:16]
AWS_SECRET = word(40)
JWT = ".".join(
    (
        base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').decode().rstrip("="),
        base64.urlsafe_b64encode(b'{"sub":"1234567890","name":"x"}').decode().rstrip("="),
        word(43),
    )
)
PASSWORD = "Tr0ub4dor&3" + "x"
KEY_BODY = [word(64) for _ in range(5)] + [word(22) + "=="]
PEM = "\n".join(("-----BEGIN RSA " + "PRIVATE KEY-----", *KEY_BODY, "-----END RSA " + "PRIVATE KEY-----"))
BASIC = base64.b64encode(b"someone:" + PASSWORD.encode()).decode()
TOKEN = word(32)

# kind, secret, text around it
FORMS = [
    ("github-token", GITHUB, 'TOKEN = "{}"'),
    ("github-token", "github_" + "pat_" + word(50), "git clone with {}"),
    ("gitlab-token", "gl" + "pat-" + word(20), "curl -H 'PRIVATE-TOKEN: {}' x"),
    ("slack-token", "xo" + "xb-" + f"123456789012-123456789012-{word(24)}", "slack {} slack"),
    ("slack-token", "https://hooks.slack" + f".com/services/T{word(8)}/B{word(8)}/{word(24)}", "url: {}"),
    ("stripe-key", "sk_" + "live_" + word(24), "stripe.api_key = '{}'"),
    ("stripe-key", "rk_" + "test_" + word(30), "{}"),
    ("openai-key", "sk-" + word(48), "OPENAI_API_KEY={}"),
    ("openai-key", "sk-" + "proj-" + word(60), 'client = OpenAI(api_key="{}")'),
    ("anthropic-key", "sk-" + "ant-api03-" + word(80), "x-api-key: {}"),
    ("hf-token", "hf" + "_" + word(34), "login(token='{}')"),
    ("aws-key", AWS, "aws_access_key_id = {}"),
    ("gcp-key", "AI" + "za" + word(35), "key={}&q=x"),
    ("gcp-key", "GOC" + "SPX-" + word(28), "client: {}"),
    ("azure-key", word(40), "DefaultEndpointsProtocol=https;AccountName=x;AccountKey={}==;"),
    ("azure-key", word(44), "https://x.blob.core.windows.net/c?sv=2020&sig={}"),
    ("jwt", JWT, "Authorization: Bearer {}"),
    ("basic-auth", BASIC, '{{"Authorization": "Basic {}"}}'),
    ("token", TOKEN, "headers = {{'authorization': 'bearer {}'}}"),
    ("token", "npm" + "_" + word(36), "//registry.npmjs.org/:_authToken={}"),
    ("token", "py" + "pi-AgEIcHlwaS5vcmc" + word(80), "password = {}"),
    ("token", "do" + "p_v1_" + hexes(64), "{}"),
    ("token", "SG" + "." + word(22) + "." + word(43), "sendgrid {}"),
    ("token", "123456789:" + word(35), "bot{}/getMe"),
    ("password", PASSWORD, "postgres://app:{}@db.example.com:5432/app"),
    ("password", "s3cr" + "etpw", "redis://:{}@localhost:6379/0"),
    ("password", "s3cr" + "etpw", "amqp://u:{}@h1,h2/v"),
    ("password", PASSWORD, "Server=db;Database=x;User Id=sa;Password={};Encrypt=yes"),
    ("password", PASSWORD, "curl -s -u admin:{} https://example.com"),
    ("secret", AWS_SECRET, 'AWS_SECRET_ACCESS_KEY="{}"'),
    ("secret", word(40) + "+/" + word(10), 'x = "{}"'),
    ("secret", word(17) + "/" + word(22), "aws_secret_access_key = {}"),
    ("secret", word(5) + "/" + word(18) + "/" + word(15), "SECRET_KEY={}"),
    ("secret", "u4" + word(38), "aws_secret_access_key = {}"),
    ("password", "p@ss" + "w0rd", "postgres://app:{}@db.example.com:5432/app"),
    ("password", "p@" + "ss@w0rd", "redis://:{}@localhost"),
    ("password", PASSWORD, "DB_PASSWORD={}\r\nNAME=x\r\n"),
    ("password", PASSWORD, 'body = "{{\\"password\\":\\"{}\\",\\"user\\":\\"x\\"}}"'),
    ("secret", TOKEN, 'body = "{{\\"api_key\\": \\"{}\\"}}"'),
    ("password", PASSWORD, 'password = """{}"""'),
    ("password", PASSWORD, "password = '''{}'''\n"),
    ("password", "$ecr" + "3tPass99", 'password = "{}"'),
    ("password", "$ecret" + "Pass99", "password: '{}'"),
    ("password", "%cr" + "3tPass99", 'password = "{}"'),
    ("password", "Your-" + "Xk29!qz", 'password = "{}"'),
    ("secret", "sample" + word(30), 'token = "{}"'),
]

# The same password in the languages that the project knows, and in files of settings.
ASSIGNMENTS = [
    'password = "{}"',  # Python
    "db = connect(user='x', password='{}')",
    'PASSWORD: Final[str] = "{}"',
    'const password = "{}";',  # JavaScript
    "const config = {{ dbPassword: `{}` }};",
    'private readonly password: string = "{}";',  # TypeScript
    'private static final String DB_PASSWORD = "{}";',  # Java
    'dataSource.setPassword("{}");',
    'properties.put("password", "{}");',
    'string password = @"{}";',  # C#
    'char password[] = "{}";',  # C
    '#define DB_PASSWORD "{}"',
    'const char *root_passwd = "{}";',
    'std::string password("{}");',  # C++
    'password := "{}"',  # Go
    'cfg := Config{{Password: "{}"}}',
    'let password: &str = "{}";',  # Rust
    '.password("{}")',
    'val password: String = "{}"',  # Kotlin
    "$password = '{}';",  # PHP
    "define('DB_PASSWORD', '{}');",
    "'password' => '{}',",
    'password: "{}",',  # Ruby
    "@password = '{}'",
    'local password = "{}"',  # Lua
    'export DB_PASSWORD="{}"',  # Bash
    "PGPASSWORD='{}' psql",
    'if (password == "{}") {{',
    '  "password": "{}",',  # JSON
    "password: '{}'",  # YAML
    "DB_PASSWORD={}",  # .env
    "export ADMIN_PASSWORD={}",
    "password = {}",  # INI
    "  password: {}",
    "spring.datasource.password={}",
    'password = "{}',  # not closed yet
]

HARMLESS = [
    "commit " + hexes(40),
    'SHA256 = "' + hexes(64) + '"',
    'resolved "https://registry.yarnpkg.com/x/-/x-1.0.0.tgz#' + hexes(40) + '"',
    '"integrity": "sha512-' + base64.b64encode(bytes(range(64))).decode() + '",',
    'checksum = "' + hexes(64) + '"',
    'id = "123e4567-e89b-12d3-a456-426614174000"',
    'session_id = "123e4567-e89b-12d3-a456-426614174000"[:8]',
    'password = "changeme"',
    'password = "<your password>"',
    'api_key = "YOUR_API_KEY_HERE"',
    'api_key = "<your key>"',
    'token = "xxxxxxxxxxxxxxxx"',
    'password = "${DB_PASSWORD}"',
    'password = "$DB_PASSWORD_2"',
    'password = "$password1"',
    'password = "$userPassword"',
    'password = "$this->secret1"',
    'password = "$(pass show db1)"',
    'password = "%DB_PASSWORD%"',
    "postgres://app:%s@db/app",
    "https://user:$TOKEN@host/path",
    'password = "your-password-123"',
    'password = """',
    "password = config.databases.primary2.password",
    "token = settings/production/token1",
    'password = os.environ["DB_PASSWORD"]',
    "password = getpass.getpass()",
    "const password = process.env.PASSWORD;",
    'password: "string"',
    "password: string;",
    "def login(user: str, password: str) -> Token:",
    "fn login(token: Uint8Array, key: u64) {",
    "let token: Uint8Array;",
    "password = self.password1",
    'label = "Password"',
    'placeholder="Enter your password"',
    'raise ValueError("password: must have 8 characters")',
    'PASSWORD_FIELD = "user_password"',
    '<input type="password" name="password">',
    'tokens = {"max_tokens": 4096}',
    "MAX_TOKENS=4096",
    'token_type = "bearer"',
    'key = "name"',
    'cache_key = f"{user_id}:{page}"',
    'primary_key = "customer_identifier_1"',
    'for key, value in {"token": "estimated"}.items():',
    "https://user:${PASSWORD}@host/path",
    "https://user:password@example.com/",
    'alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"',
    'path = "/usr/share/Application2/resources/OtherThing/with/many/Parts1"',
    'name = "AbstractSingletonProxyFactoryBeanConfiguration2Test"',
    "Basic authentication is used with bearer tokens.",
    "secret = secrets.token_hex(32)",
    "git@github.com:owner/repository.git",
    '"https://example.com:8080/a@b"',
    'FORBIDDEN = (".htpasswd", ".dockercfg", "id_rsa")',
    "-----BEGIN CERTIFICATE-----\n" + word(64) + "\n-----END CERTIFICATE-----",
    "-----BEGIN PUBLIC KEY-----\n" + word(64) + "\n-----END PUBLIC KEY-----",
    "ssh-rsa " + "AAAAB3NzaC1yc2E" + word(100) + " me@host",
]
