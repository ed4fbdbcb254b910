"""Files that are no images, or of formats that are not read, are named by their first bytes, with the remedy."""

import time

import pytest

from batchverify.images.decode import decode
from batchverify.images.failure import ImageFailure
from batchverify.images.layout import Layout
from batchverify.schema import ImageStatus

FILES = {
    "JPEG XL": b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(100),
    "PDF": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
    "SVG": b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    "HTML": b"\xef\xbb\xbf\r\n<!DOCTYPE html>\n<html><head><title>403 Forbidden</title>",
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "object store": b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code></Error>',
    "ZIP": b"PK\x03\x04" + bytes(100),
    "video": b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(100),
}


@pytest.mark.parametrize("name", FILES)
def test_a_foreign_file_is_named_with_a_remedy(name):
    failure = decode(FILES[name], Layout(8, 8))
    assert isinstance(failure, ImageFailure) and failure.status is ImageStatus.UNSUPPORTED
    assert name in failure.error and ";" in failure.error


def test_comments_without_end_take_no_time():
    started = time.process_time()
    decode(b"<?xml version='1.0'?>" + b"<!---->" * 300, Layout(8, 8))
    assert time.process_time() - started < 5


def test_noise_is_unreadable():
    failure = decode(b"no image at all", Layout(8, 8))
    assert isinstance(failure, ImageFailure) and failure.status is ImageStatus.UNREADABLE
