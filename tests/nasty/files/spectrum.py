"""The cases of csv-spectrum 2.0.0 (Max Ogden, BSD-2-Clause, https://github.com/maxogden/csv-spectrum), written anew.

Its JSON files say what each has to give; where a field without quotes is empty we say NULL, which it cannot.
"""

from __future__ import annotations

from typing import Final

from tests.nasty.case import Nasty

_ABC: Final = "a text, b text, c text"
_PLACES: Final = '"Contact Phone Number" text, "Location Coordinates" text, "Cities" text, "Counties" text'

FILES: Final = [
    Nasty(
        "comma_in_quotes",
        b'first,last,address,city,zip\nJohn,Doe,120 any st.,"Anytown, WW",08123',
        [("John", "Doe", "120 any st.", "Anytown, WW", "08123")],
        table="first text, last text, address text, city text, zip text",
    ),
    Nasty("empty", b'a,b,c\n1,"",""\n2,3,4', [("1", "", ""), ("2", "3", "4")], table=_ABC),
    Nasty("empty_crlf", b'a,b,c\r\n1,"",""\r\n2,3,4', [("1", "", ""), ("2", "3", "4")], table=_ABC),
    Nasty("escaped_quotes", b'a,b\n1,"ha ""ha"" ha"\n3,4\n', [("1", 'ha "ha" ha'), ("3", "4")]),
    Nasty(
        "json",
        b'key,val\n1,"{""type"": ""Point"", ""coordinates"": [102.0, 0.5]}"\n',
        [("1", '{"type": "Point", "coordinates": [102.0, 0.5]}')],
        table="key text, val text",
    ),
    # Quotes and apostrophes in plain fields, and characters that somebody's program has replaced.
    Nasty(
        "location_coordinates",
        "Contact Phone Number,Location Coordinates,Cities,Counties\n"
        "2095257564,37�36'37.8\"N 121�2'17.9\"W,Modesto,Stanislaus".encode(),
        [("2095257564", "37�36'37.8\"N 121�2'17.9\"W", "Modesto", "Stanislaus")],
        table=_PLACES,
    ),
    Nasty(
        "newlines",
        b'a,b,c\n1,2,3\n"Once upon \na time",5,6\n7,8,9\n',
        [("1", "2", "3"), ("Once upon \na time", "5", "6"), ("7", "8", "9")],
        table=_ABC,
    ),
    Nasty(
        "newlines_crlf",
        b'a,b,c\r\n1,2,3\r\n"Once upon \r\na time",5,6\r\n7,8,9\r\n',
        [("1", "2", "3"), ("Once upon \r\na time", "5", "6"), ("7", "8", "9")],
        table=_ABC,
    ),
    Nasty("quotes_and_newlines", b'a,b\n1,"ha \n""ha"" \nha"\n3,4\n', [("1", 'ha \n"ha" \nha'), ("3", "4")]),
    Nasty("simple", b"a,b,c\n1,2,3\n", [("1", "2", "3")], table=_ABC),
    Nasty("simple_crlf", b"a,b,c\r\n1,2,3\r\n", [("1", "2", "3")], table=_ABC),
    Nasty("utf8", "a,b,c\n1,2,3\n4,5,ʤ".encode(), [("1", "2", "3"), ("4", "5", "ʤ")], table=_ABC),
]
