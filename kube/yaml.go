package kube

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	yaml "go.yaml.in/yaml/v2"
)

// expansion and expansionBase bound the JSON a YAML document may become:
// expansion times its own size plus expansionBase bytes. Only aliases, and
// escapes by a small factor, make it larger than its source. The parser bounds the
// number of nodes that aliases multiply, but not their bytes.
const (
	expansion     = 4
	expansionBase = 1 << 20
)

// yamlToJSON converts one document as kubectl does, by the rules of YAML 1.1.
// duplicates are the paths of keys that occur twice in their mapping; the JSON has
// the last of each.
func yamlToJSON(text []byte) (raw []byte, duplicates []string, err error) {
	var v any
	err = decodeYAML(text, &v, true)
	var dup *yaml.TypeError
	if errors.As(err, &dup) {
		// In strict mode a key that a merge (<<) brought and the mapping then
		// overrides counts as duplicate, though it is the purpose of merges. Ordered
		// maps keep true duplicates and know nothing of merges.
		v = nil
		if err = decodeYAML(text, &v, false); err == nil {
			var ordered yaml.MapSlice
			if decodeYAML(text, &ordered, false) == nil {
				duplicates = duplicateKeys(ordered, "", nil)
			}
		}
	}
	if err != nil {
		return nil, nil, err
	}
	w := jsonWriter{limit: expansion*len(text) + expansionBase}
	if err := w.value(v); err != nil {
		return nil, nil, err
	}
	return w.buf.Bytes(), duplicates, nil
}

// decodeYAML parses text as exactly one document. The parser takes what follows
// one document for the business of the next call, and would drop it silently.
func decodeYAML(text []byte, v any, strict bool) (err error) {
	// The parser reports its own errors by panicking and lets other panics pass; a
	// manifest must not be able to stop the agent.
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("yaml: the parser failed: %v", p)
		}
	}()
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.SetStrict(strict)
	if err := dec.Decode(v); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	var more any
	switch err := dec.Decode(&more); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return err
	}
	return errors.New("yaml: a second document starts without a line of three dashes; end lines with LF or CRLF")
}

// duplicateKeys appends the paths of keys that occur more than once.
func duplicateKeys(v any, path string, found []string) []string {
	switch v := v.(type) {
	case yaml.MapSlice:
		seen := make(map[string]bool, len(v))
		for _, item := range v {
			key := fmt.Sprint(item.Key)
			at := join(path, key)
			if seen[key] && len(found) < maxProblems {
				found = append(found, at)
			}
			seen[key] = true
			found = duplicateKeys(item.Value, at, found)
		}
	case []any:
		for i, e := range v {
			found = duplicateKeys(e, path+"["+strconv.Itoa(i)+"]", found)
		}
	}
	return found
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// jsonWriter renders what the YAML parser returns.
type jsonWriter struct {
	buf   bytes.Buffer
	limit int // bytes
}

func (w *jsonWriter) value(v any) error {
	if w.buf.Len() > w.limit {
		return fmt.Errorf("the document grows beyond %d bytes by its aliases", w.limit)
	}
	switch v := v.(type) {
	case map[any]any:
		return w.mapping(v)
	case []any:
		return w.sequence(v)
	case string:
		if w.buf.Len()+len(v) > w.limit {
			return fmt.Errorf("the document grows beyond %d bytes by its aliases", w.limit)
		}
	}
	return w.scalar(v)
}

func (w *jsonWriter) scalar(v any) error {
	enc := json.NewEncoder(&w.buf)
	enc.SetEscapeHTML(false) // it would sextuple every < of the source
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("value %v has no JSON form: %w", v, err)
	}
	w.buf.Truncate(w.buf.Len() - 1) // the newline Encode adds
	return nil
}

func (w *jsonWriter) sequence(v []any) error {
	w.buf.WriteByte('[')
	for i, e := range v {
		if i > 0 {
			w.buf.WriteByte(',')
		}
		if err := w.value(e); err != nil {
			return err
		}
	}
	w.buf.WriteByte(']')
	return nil
}

// mapping writes the keys in order, so that errors about them come in the same
// order every time.
func (w *jsonWriter) mapping(v map[any]any) error {
	type entry struct {
		key   string
		value any
	}
	entries := make([]entry, 0, len(v))
	for k, e := range v {
		key, err := keyText(k)
		if err != nil {
			return err
		}
		entries = append(entries, entry{key, e})
	}
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.key, b.key) })
	w.buf.WriteByte('{')
	for i, e := range entries {
		if i > 0 {
			w.buf.WriteByte(',')
		}
		if err := w.value(e.key); err != nil {
			return err
		}
		w.buf.WriteByte(':')
		if err := w.value(e.value); err != nil {
			return err
		}
	}
	w.buf.WriteByte('}')
	return nil
}

// keyText is the JSON name of a YAML key, as sigs.k8s.io/yaml chooses it.
func keyText(k any) (string, error) {
	switch k := k.(type) {
	case string:
		return k, nil
	case bool:
		return strconv.FormatBool(k), nil
	case int:
		return strconv.Itoa(k), nil
	case int64:
		return strconv.FormatInt(k, 10), nil
	case uint64:
		return strconv.FormatUint(k, 10), nil
	case float64:
		return strconv.FormatFloat(k, 'g', -1, 32), nil
	}
	return "", fmt.Errorf("key %v is no string", k)
}

var parserLine = regexp.MustCompile(`\bline (\d+):`)

// inFile rewrites the line numbers of a YAML error, which count from the start of
// the document, to those of the file.
func inFile(err error, doc document) string {
	return parserLine.ReplaceAllStringFunc(err.Error(), func(m string) string {
		n, convErr := strconv.Atoi(m[len("line ") : len(m)-1])
		if convErr != nil {
			return m
		}
		return fmt.Sprintf("line %d:", doc.start-1+n)
	})
}
