"""A page of HTML read for tests: what is not balanced or leads out of the file, its text, tables and pictures."""

import re
from html.parser import HTMLParser

EMPTY = {"meta", "img", "br", "hr", "link", "input"}  # elements without an end tag
URL = re.compile(r"(?i)(https?:)?//|@import|url\(|javascript:")


class Page(HTMLParser):
    """A page as text, tables, pictures; `faults`: what is not balanced, or leads out of the file."""

    def __init__(self, source: str):
        super().__init__(convert_charrefs=True)
        self.open, self.faults, self.tags, self.ids, self.links = [], [], [], [], []
        self.headings, self.images, self.tables, self.text = [], [], {}, ""
        self.feed(source)
        self.close()
        self.faults += [f"{tag} is not closed" for tag in self.open]

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag not in EMPTY:
            self.open.append(tag)
        for name, value in attrs.items():
            if name.startswith("on") or (URL.search(value or "") and not value.startswith("data:image/")):
                self.faults.append(f"{tag} {name}={value}")
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs["href"]] if tag == "a" else []
        self.images += [attrs] if tag == "img" else []
        self.headings += [int(tag[1])] if re.fullmatch("h[1-6]", tag) else []
        if tag == "caption":
            self.caption = ""
        if tag == "tbody":
            self.tables[self.caption] = []
        if tag == "tr" and "tbody" in self.open:
            self.tables[self.caption].append([])
        if tag in ("td", "th") and "tbody" in self.open:
            self.tables[self.caption][-1].append("")
        if tag in ("p", "li", "small", "span", "dt", "dd", "tr", "h2", "h3"):
            self.handle_data(" ")

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> closes another")

    def handle_data(self, data):
        if "style" in self.open:
            self.faults += URL.findall(data)
            return
        self.text += data
        if "caption" in self.open:
            self.caption += data
        elif "tbody" in self.open and self.open[-1] != "tbody" and ("td" in self.open or "th" in self.open):
            self.tables[self.caption][-1][-1] += data

    def line(self, caption: str, first: str) -> list[str]:
        """The cells of the line that begins with a word, in the table whose caption begins so."""
        table = next(lines for name, lines in self.tables.items() if name.startswith(caption))
        lines = ([" ".join(cell.split()) for cell in cells] for cells in table)
        return next(cells for cells in lines if cells[0].startswith(" ".join(first.split())))
