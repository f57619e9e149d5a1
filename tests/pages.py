"""A page taken apart, and everything that holds for each: what its tests share."""

import itertools
import re
from html.parser import HTMLParser

from jaxlite.report import folder_page
from jaxlite.report.html_page import html

VOID = {'wbr', 'meta', 'img', 'br', 'path', 'circle', 'rect', 'link'}


class Page(HTMLParser):
  """A page taken apart: elements with their attributes, text, headings; it complains where tags do not match."""

  def __init__(self, text):
    super().__init__(convert_charrefs=True)
    self.open, self.elements, self.text, self.style, self.goes_on = [], [], [], '', False
    self.feed(text)
    self.close()
    assert not self.open, self.open

  def handle_starttag(self, tag, attrs):
    names = [name for name, _ in attrs]
    assert len(names) == len(set(names)), (tag, attrs)
    self.elements.append((tag, dict(attrs)))
    self.goes_on = tag == 'wbr'  # within a word
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open
    assert self.open.pop() == tag, (tag, self.open)

  def handle_data(self, data):
    if self.open and self.open[-1] == 'style':
      self.style += data
    elif self.goes_on:
      self.text[-1] += data
    else:
      self.text.append(data)
    self.goes_on = False

  def all(self, *tags):
    return [attrs for tag, attrs in self.elements if tag in tags]


def check(text):
  """Everything that holds for each page."""
  page = Page(text)
  assert len(page.all('html')) == 1
  assert page.all('html')[0]['lang'] == 'en'
  assert len(page.all('h1')) == len(page.all('title')) == len(page.all('main')) == 1
  levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r'h[1-6]', tag)]
  assert levels[0] == 1
  assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), levels
  identities = [attrs['id'] for _, attrs in page.elements if 'id' in attrs]
  assert len(identities) == len(set(identities))
  for attrs in page.all('a'):
    link = attrs['href']
    assert link.removeprefix('#') in identities if link.startswith('#') else re.fullmatch(r'[^:]*/report\.html', link)
  assert page.all('a')[0] == {'class': 'skip', 'href': '#main'}
  assert len(page.all('table')) == len(page.all('caption'))
  assert all(attrs.get('scope') in ('row', 'col') for attrs in page.all('th'))
  for attrs in page.all('svg'):
    assert attrs.get('aria-hidden') == 'true' or (attrs['role'] == 'img' and attrs['aria-label'].strip())
  assert all(attrs['alt'].strip() and attrs['src'].startswith('data:image/png;base64,') for attrs in page.all('img'))
  assert all(attrs['aria-label'].strip() for _, attrs in page.elements if attrs.get('role') == 'region')
  # Nothing is asked for: no address in an attribute that a browser follows, none in the style, no script, no form.
  kinds = {tag for tag, _ in page.elements}
  assert not kinds & {
    'script',
    'link',
    'iframe',
    'object',
    'embed',
    'form',
    'base',
    'video',
    'audio',
    'use',
    'foreignobject',
  }
  for _, attrs in page.elements:
    assert not any(name.startswith('on') or name in ('srcset', 'xlink:href', 'action', 'background') for name in attrs)
  assert not re.search(r'url\(|@import|expression|//', page.style)
  policy = next(attrs['content'] for attrs in page.all('meta') if attrs.get('http-equiv') == 'Content-Security-Policy')
  assert policy.startswith("default-src 'none'; ")
  assert not re.search(r'\w+://', text[: text.index('<style>')])
  return page


def shown(folder, title='', tables=()):
  runs, title, tables, told = folder_page.gathered(folder, title, tables)
  return html(runs, title, tables=tables, told=told, folder=folder)
