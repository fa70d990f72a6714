"""What is shown and recorded holds no password, key or token, whatever it is made of."""

from __future__ import annotations

import random
from urllib.parse import quote, quote_plus

import pytest
from sqlalchemy.engine import URL, make_url

from psvit_ray.storage.folder import Folder
from psvit_ray.text.secrets import without_secrets, without_secrets_in
from psvit_ray.training.config import TrainConfig

SECRET = "hunter2"
NASTY = "aZ9@:/?#&=%+;,.~!$*()[]{}|\\^`'\"<> \tü中-_"
"""What passwords are made of, and what URLs are parted by."""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("mysql://u:p@hunter2@h/d", "mysql://h/d"),
        ("s3://AK:sec hunter2@b/x", "s3://b/x"),
        ("s3://AK:12/hunter2@b/x", "s3://b/x"),
        ("s3://AK:1234 hunter2@b/x", "s3://b/x"),
        ("redis://:hunter2@h:1", "redis://h:1"),
        ("https://hunter2@host/repo", "https://host/repo"),
        ("http://u:hunter2@[::1]:5000/x", "http://[::1]:5000/x"),
        ("postgresql://h/d?user=u&password=hunter2", "postgresql://h/d?user=u&password=***"),
        ("postgresql://h/d?password=hun hunter2&a=1", "postgresql://h/d?password=***&a=1"),
        ("abfs://c@a.net/x?client_secret=hunter2", "abfs://c@a.net/x?client_secret=***"),
        ("abfs://c:hunter2@a.net/x", "abfs://a.net/x"),
        ("https://a.net/c/x?sv=2&SIG=hunter2", "https://a.net/c/x?sv=2&SIG=***"),
        ("https://a.net/x?X-Amz-Signature=hunter2", "https://a.net/x?X-Amz-Signature=***"),
        ("https://a.net/x?pass%77ord=hunter2", "https://a.net/x?pass%77ord=***"),
        ("https://a.net/#id=1&access_token=hunter2", "https://a.net/#id=1&access_token=***"),
        ("sqlserver://h;user=u;password=hunter2", "sqlserver://h;user=u;password=***"),
        (
            "mssql+pyodbc:///?odbc_connect=DRIVER%3DX%3BPWD%3Dhunter2",
            "mssql+pyodbc:///?odbc_connect=***",
        ),
        ("https://a.net/?next=https%3A%2F%2Fu%3Ahunter2%40h", "https://a.net/?next=***"),
        ("Cannot parse URI: 's3://u:hunter2@b/x' at 3", "Cannot parse URI: 's3://b/x' at 3"),
        ("from s3://u:hunter2@b to s3://v:hunter2@c.", "from s3://b to s3://c."),
        ("https://h/?a=a=a=a=a=a=hunter2", "https://h/?a=***"),
        (f"https://h/?{'a=http://h/?' * 30}hunter2&b=1", "https://h/?a=***&b=1"),
        (f"{'x' * 40}://u:hunter2@h", f"{'x' * 40}://h"),
        ("(see https://a.net/x?token=hunter2), twice", "(see https://a.net/x?token=***), twice"),
        ("no: s3://u:hunter2@b\nand s3://v:hunter2@c", "no: s3://b\nand s3://c"),
    ],
)
def test_a_secret_is_left_out_and_all_else_stays(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
    assert without_secrets(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no URL: user@host, password=1",
        "s3://bucket/at@home/key=5/part-0.parquet",
        "s3://bucket/x?region=eu&endpoint_override=localhost:9000&scheme=http",
        "gs://anonymous@bucket/x",
        "abfss://container@account.dfs.core.windows.net/x",
        "sqlite:////disk/a b/mlflow.db",
        "sqlite:////disk/50%25%3F/mlflow.db",
        "http://localhost:5000",
        "http://[::1]:5000/x@y",
        "see http://localhost:5000: refused, as me@here says",
        "postgresql://h:5432/d?application_name=a@b",
        "https://a.net/monkey?compass=north&keys=2&password=",
    ],
)
def test_a_text_without_secrets_stays_as_it_is(text: str) -> None:
    assert without_secrets(text) == text


def passwords(seed: int, size: int) -> list[str]:
    """Texts that begin and end with something that is in no other part of a URL."""
    draw = random.Random(seed)
    return ["Qx" + "".join(draw.choices(NASTY, k=draw.randint(0, 12))) + "xQ" for _ in range(size)]


def test_no_password_is_shown_however_it_is_written() -> None:
    for password in passwords(0, 3000):
        for written in (password, quote(password, safe=""), quote_plus(password)):
            for url in (f"s3://KEY:{written}@bucket/x", f"mysql+x://u:{written}@h:1/d?user=a@b"):
                for text in (url, f"got '{url}': refused", f"Error({url!r})"):
                    shown = without_secrets(text)
                    assert "Qx" not in shown, text
                    assert "xQ" not in shown, text
                    assert without_secrets(shown) == shown, text


def test_no_parameter_that_is_a_secret_is_shown_and_the_others_stay() -> None:
    for value in passwords(1, 3000):
        for written in (quote(value, safe=""), quote_plus(value)):
            text = f"got abfs://c@a.net/x?region=eu&client_secret={written}&n=1 twice"
            assert without_secrets(text) == (
                "got abfs://c@a.net/x?region=eu&client_secret=***&n=1 twice"
            )


def test_what_sqlalchemy_takes_for_a_password_is_not_shown() -> None:
    """SQLAlchemy's own parser says what the password is."""
    for password in passwords(2, 1000):
        url = URL.create("postgresql+psycopg", "me", password, "host", 5432, "runs")
        text = url.render_as_string(hide_password=False)
        assert make_url(text).password == password
        assert without_secrets(text) == "postgresql+psycopg://host:5432/runs"


@pytest.mark.parametrize("part", ["x", "a=", "a&", "'", "http://h/?a=", "http://["])
def test_a_long_text_is_looked_through_as_soon_as_a_short_one(part: str) -> None:
    """In a time that grows with its length: with its square it would be minutes."""
    assert without_secrets(part * 20_000) is not None
    assert "hunter2" not in without_secrets(f"http://h/?{part * 20_000} s3://u:hunter2@b")


def test_every_text_of_nested_values_is_looked_at() -> None:
    raw = {"a": ["s3://k:hunter2@b", 1, None], "b": {"c": ("s3://k:hunter2@b", 2.5, True)}}
    assert without_secrets_in(raw) == {"a": ["s3://b", 1, None], "b": {"c": ("s3://b", 2.5, True)}}


@pytest.mark.parametrize("field", ["data", "init", "init_checkpoint", "teacher"])
@pytest.mark.parametrize("uri", ["s3://k:hunter2@b/x", "https://a.net/x?sig=hunter2"])
def test_a_run_is_not_configured_with_a_secret(field: str, uri: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be without ") as caught:
        TrainConfig.model_validate({field: uri})
    assert "must be without" in str(caught.value.errors()[0]["msg"])  # type: ignore[attr-defined]
    assert SECRET not in str(caught.value.errors()[0]["msg"])  # type: ignore[attr-defined]


def test_a_folder_is_shown_without_secrets() -> None:
    assert str(Folder("s3://b/x?secret_key=hunter2") / "name") == "s3://b/x/name?secret_key=***"
