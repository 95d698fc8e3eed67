"""Measured tables: a form with one meaning is read, every other form is refused with its line."""

import pytest

from nft_ext import NVMDevice

MEAN, STD = (0.1, 1.2, 1.9, 3.3), (0.05, 0.2, 0.0, 0.3)
PLAIN = "level,mean,std\n0,0.1,0.05\n1,1.2,0.2\n2,1.9,0.0\n3,3.3,0.3\n"
ROWS = PLAIN.partition("\n")[2]


def read(tmp_path, content, **options):
    path = tmp_path / "chip7.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return NVMDevice.from_table(path, **options)


@pytest.mark.parametrize(
    "content",
    [
        "# lot 7\n\nlevel,mean,std\n" + ROWS,
        "% lot 7\n// wafer 3\n\nlevel,mean,std\n# sweep 1\n\n" + ROWS + "\n\n",
        '"# lot 7, wafer 3",,\nlevel,mean,std\n' + ROWS + ",,\n",
        "Level, MEAN ,Std\n" + ROWS,
        '"level","mean","std"\n' + "".join('"' + row.replace(",", '","') + '"\n' for row in ROWS.splitlines()),
        "level,mean,std\n" + "".join(f"{row[0]}.0{row[1:]}\n" for row in ROWS.splitlines()),
        PLAIN.replace(",", ";"),
        PLAIN.replace(",", "\t"),
        PLAIN.replace(",", ";").replace(".", ","),
        PLAIN.replace(",", "\t").replace(".", ","),
        "# level mean std\n" + ROWS.replace(",", " "),
        "# level,mean,std\n" + ROWS,
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        b"\xef\xbb\xbf" + PLAIN.encode(),
        PLAIN.encode("utf-16"),
        "# means in \u00b5S / 10\n".encode("latin-1") + PLAIN.encode(),
        "mean,std,level\n0.1,5e-2,0\n1.9,0.0,2\n+1.2,2E-1,+1\n3.3,.3,3.\n",
        "level,n,mean,std,note\n0,9,0.1,0.05,\n1,9,1.2,0.2,b\n2,9,1.9,0.0,c\n3,9,3.3,0.3,d\n",
        "level,mean (level),std [levels]\n" + ROWS,
        "level,mean,std\n-,level,level\n" + ROWS,
    ],
)
def test_forms_with_one_meaning_are_read(tmp_path, content):
    nvm = read(tmp_path, content)
    assert (nvm.level_mean, nvm.level_std, nvm.device_bits, nvm.name) == (MEAN, STD, 2, "chip7")


@pytest.mark.parametrize("header", ["level,mean (uS),std (\u00b5S)", "level,mean,std\n,uS,uS", "level,mean,std"])
def test_conductances_may_name_their_unit(tmp_path, header):
    content = header + "\n0,10,1.5\n1,22,1\n2,32,2\n3,40,0\n"
    nvm = read(tmp_path, content, unit="microsiemens", g_min=10, g_max=40)
    assert nvm.level_mean == pytest.approx((0, 1.2, 2.2, 3)) and nvm.level_std == pytest.approx((0.15, 0.1, 0.2, 0))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        # the header
        ("", ": must have the columns level, mean, std; missing level, mean, std; got no line"),
        (ROWS, ", line 1: must have the columns level, mean, std; missing level, mean, std; got '0,0.1,0.05'"),
        ("level,mean\n0,0\n1,1\n", ", line 1: must have the columns level, mean, std; missing std; got 'level,mean'"),
        (
            "Instrument B1500\n" + PLAIN,
            ", line 1: must be the header level, mean, std, or a comment.*'Instrument B1500'",
        ),
        ("level,mean,std,mean\n" + ROWS, ", line 1: must name the column mean once"),
        (PLAIN.replace("std", "std (%)", 1), ": must have the column std in the unit 'level'.*; got the unit '%'"),
        (
            PLAIN.replace("mean", "mean (uS)", 1),
            r": must have the column mean .*unit=\"microsiemens\".*'uS' in its header",
        ),
        ("level,mean,std\n,,%\n" + ROWS, ": must have the column std in the unit 'level'.*; got the unit '%'"),
        # the cells
        (
            PLAIN.replace("1.2,", "1,2,"),
            ", line 3: must have 3 cells.* semicolons between cells; got 4 cells in '1,1,2,0.2'",
        ),
        (PLAIN.replace("0.2\n", "0.2,\n"), ", line 3: must have 3 cells"),
        (PLAIN.replace(",0.2\n", "\n"), ", line 3: must have 3 cells, as the header has; got 2 cells in '1,1.2'"),
        (PLAIN.replace("1.2", '"1.2'), ", line 3: must have whole cells"),
        (PLAIN.replace("1.2", "1_2"), ", line 3: must hold an integer level and two numbers; got '1,1_2,0.2'"),
        (PLAIN.replace("0.2\n", "10 %\n"), ", line 3: must hold an integer level and two numbers; got '1,1.2,10 %'"),
        (PLAIN.replace("2,1.9", "1,1.9"), ", line 4: must name each level once; got '1,1.9,0.0'"),
        (PLAIN.replace("1.2", "nan"), ", line 3: must hold a finite mean"),
        (PLAIN.replace("0.2\n", "inf\n"), ", line 3: must hold a finite mean and a finite std"),
        (PLAIN.replace("0.2\n", "-0.2\n"), ", line 3: must hold a finite mean and a finite std >= 0; got '1,1.2,-0.2'"),
        (PLAIN.replace("1,1.2", "1.5,1.2"), ", line 3: must hold an integer level"),
        ("level;mean;std\n0;1,000;1,000\n1;2,000;1,000\n", ", line 2: must hold numbers without thousands separators"),
        ("level;mean;std\n0;1.000,5;1\n1;2.000,5;1\n", ", line 2: must hold numbers without thousands separators"),
        (PLAIN.replace("1.2", "9" * 200_000), ", line 3: must have whole cells .field larger"),
        # the values
        (PLAIN.replace("1.2", "2.2"), ", line 4: must have a mean above that of level 1; got '2,1.9,0.0'"),
        (
            PLAIN.replace("0.2\n", "10\n"),
            r", line 3: must have a std in the unit of the means, .* 1.5 levels .no percent.",
        ),
        ("level,mean,std\n0,0.49,0.1\n1,0.51,0.1\n", ": must have means in level units, near 0 .. 1"),
        (PLAIN[:-1], ": must end with a line break: the file may be cut"),
        (PLAIN.replace("1,1.2", "4,1.2"), r": must list the levels 0 .. 2\^K - 1, K >= 1; got \[0, 2, 3, 4\]"),
        (PLAIN.encode("utf-16")[2:], ": must be a CSV file in UTF-8; got bytes that are not text"),
        (b"x" * (1 << 20) + b"x", ": must be a table of at most 1048576 bytes"),
    ],
)
def test_everything_else_is_refused_with_its_line(tmp_path, content, words):
    with pytest.raises(ValueError, match="chip7.csv" + words) as error:
        read(tmp_path, content)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_device_bits_say_that_the_table_is_whole(tmp_path):
    assert read(tmp_path, PLAIN[:-1], device_bits=2).level_mean == MEAN
    half = "\n".join(PLAIN.splitlines()[:3]) + "\n"
    with pytest.warns(UserWarning, match="read as a one-bit device; if it is not cut, say so by device_bits=1"):
        assert read(tmp_path, half).device_bits == 1
    with pytest.raises(ValueError, match="level_mean: must have"):
        read(tmp_path, half, device_bits=2)


def test_options_of_the_device(tmp_path):
    assert read(tmp_path, PLAIN, name="lot 7", weight_bits=4).name == "lot 7"
    with pytest.raises(ValueError, match="relative_to: must be left out, because the table sets the deviations"):
        read(tmp_path, PLAIN, relative_to="max")
