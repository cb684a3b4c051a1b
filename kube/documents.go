package kube

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"unicode/utf8"
)

// document is one YAML document of a file, or a run of JSON objects between
// separators.
type document struct {
	index int    // counted from 1; empty documents count where --- starts them
	line  int    // of the first line with content
	start int    // line of the first byte of text, for the parser's line numbers
	text  []byte // may begin with its own --- line
}

// checkEncoding refuses what would reach the parsers garbled. PowerShell's > makes
// UTF-16 files, hence the hint.
func checkEncoding(data []byte) error {
	if bytes.HasPrefix(data, []byte{0xFF, 0xFE}) || bytes.HasPrefix(data, []byte{0xFE, 0xFF}) {
		return errors.New("the file is UTF-16; save it as UTF-8")
	}
	if !utf8.Valid(data) {
		return errors.New("the file is not valid UTF-8; save it as UTF-8")
	}
	return nil
}

// split cuts a file at the document markers of YAML 1.1 (sections 9.1.2 and
// 9.2): a line of three dashes starts a document, a line of three dots ends one,
// both followed by white space or nothing. They are markers wherever they stand,
// even inside a block scalar, so no parser is needed to find them. Documents
// without content are left out.
func split(data []byte) []document {
	data = bytes.TrimPrefix(data, []byte("\xEF\xBB\xBF"))
	s := splitter{data: data, line: 1}
	s.begin(0, 1, false)
	for pos := 0; pos < len(data); s.line++ {
		end := len(data)
		if i := bytes.IndexByte(data[pos:], '\n'); i >= 0 {
			end = pos + i + 1
		}
		s.take(pos, end)
		pos = end
	}
	s.end(len(data))
	return s.docs
}

// splitter walks the lines of a file; from and the fields below it describe the
// document that is open.
type splitter struct {
	data  []byte
	line  int // the current one
	docs  []document
	index int // of the last document that counts

	from       int // offset of its first byte
	start      int // and that byte's line
	explicit   bool
	directives bool // saw %YAML or %TAG; those belong to the document that --- starts
	content    int  // line of the first content, 0: none yet
}

func (s *splitter) begin(from, line int, explicit bool) {
	s.from, s.start, s.explicit, s.directives, s.content = from, line, explicit, false, 0
}

func (s *splitter) end(at int) {
	if !s.explicit && s.content == 0 {
		return
	}
	s.index++
	if s.content > 0 {
		s.docs = append(s.docs, document{index: s.index, line: s.content, start: s.start, text: s.data[s.from:at]})
	}
}

// take looks at the line data[pos:end].
func (s *splitter) take(pos, end int) {
	line := s.data[pos:end]
	switch {
	case marker(line, "---"):
		if s.directives && s.content == 0 && !s.explicit {
			s.explicit = true // same document: directives, then ---
		} else {
			s.end(pos)
			s.begin(pos, s.line, true)
		}
		s.see(line[3:])
	case marker(line, "..."):
		s.end(pos)
		s.begin(end, s.line+1, false)
	case line[0] == '%' && s.content == 0 && !s.explicit:
		s.directives = true
	default:
		s.see(line)
	}
}

// see notes whether a line has content, that is, more than white space and a comment.
func (s *splitter) see(line []byte) {
	rest := bytes.TrimSpace(line)
	if s.content == 0 && len(rest) > 0 && rest[0] != '#' {
		s.content = s.line
	}
}

func marker(line []byte, mark string) bool {
	if !bytes.HasPrefix(line, []byte(mark)) {
		return false
	}
	return len(line) == len(mark) || line[len(mark)] == ' ' || line[len(mark)] == '\t' || line[len(mark)] == '\r' || line[len(mark)] == '\n'
}

// jsonValue is one of several JSON values in a document.
type jsonValue struct {
	line int // where it starts
	raw  []byte
}

// jsonObjects reads the document as JSON objects, one after the other. ok is
// false if it does not look like JSON at all, which leaves it to the YAML parser;
// err is set if it looks like JSON and is none (it may still be YAML).
func jsonObjects(doc document) (values []jsonValue, ok bool, err error) {
	text := doc.text
	if marker(text, "---") {
		text = text[3:]
	}
	if rest := bytes.TrimSpace(text); len(rest) == 0 || rest[0] != '{' {
		return nil, false, nil
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	line, counted := doc.start, 0
	for {
		var raw json.RawMessage
		if err := dec.Decode(&raw); err == io.EOF {
			return values, true, nil
		} else if err != nil {
			return nil, true, err
		}
		from := int(dec.InputOffset()) - len(raw)
		line += bytes.Count(text[counted:from], []byte{'\n'})
		counted = from
		values = append(values, jsonValue{line: line, raw: raw})
	}
}
