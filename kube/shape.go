package kube

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/intstr"
	kjson "sigs.k8s.io/json"
)

// misfits compares JSON with the type it should have decoded into and returns the
// fields that do not fit: "spec.ingress[0].ports[0].endPort: want a number, got …".
// The decoder itself stops at the first of them, names it without indices, and
// then says nothing of unknown fields. This runs only when it has failed.
func misfits(raw []byte, t reflect.Type) []string {
	var v any
	if err := kjson.UnmarshalCaseSensitivePreserveInts(raw, &v); err != nil {
		return nil // the caller has the decoder's own error
	}
	var s shape
	s.walk(v, t, "")
	return s.found
}

type shape struct{ found []string }

func (s *shape) addf(path, format string, args ...any) {
	if len(s.found) >= maxProblems {
		return
	}
	text := fmt.Sprintf(format, args...)
	if path != "" {
		text = path + ": " + text
	}
	s.found = append(s.found, text)
}

func (s *shape) walk(v any, t reflect.Type, path string) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case v == nil: // null leaves a field as it is, whatever its type
	case reflect.PointerTo(t).Implements(reflect.TypeFor[json.Unmarshaler]()):
		s.custom(v, t, path)
	case t.Kind() == reflect.Struct:
		s.object(v, t, path)
	case t.Kind() == reflect.Map:
		s.mapping(v, t, path)
	case t.Kind() == reflect.Slice:
		s.list(v, t, path)
	default:
		s.scalar(v, t, path)
	}
}

// custom lets a type that reads JSON its own way (times, quantities, port
// numbers or names) try.
func (s *shape) custom(v any, t reflect.Type, path string) {
	raw, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(raw, reflect.New(t).Interface())
	}
	switch {
	case err == nil:
	case t == reflect.TypeFor[intstr.IntOrString]():
		s.addf(path, "want a whole number or a string, got %s", describe(v))
	default:
		s.addf(path, "%s does not fit: %v", describe(v), err)
	}
}

func (s *shape) object(v any, t reflect.Type, path string) {
	m, ok := v.(map[string]any)
	if !ok {
		s.addf(path, "want an object, got %s", describe(v))
		return
	}
	fields := map[string]reflect.Type{}
	jsonFields(t, fields)
	for _, key := range slices.Sorted(maps.Keys(m)) {
		at := join(path, key)
		if ft, ok := fields[key]; ok {
			s.walk(m[key], ft, at)
		} else {
			s.addf(at, "unknown field")
		}
	}
}

// jsonFields collects the fields of a struct by their JSON names, those of
// inlined structs included.
func jsonFields(t reflect.Type, into map[string]reflect.Type) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "":
			jsonFields(f.Type, into)
		case name != "" && name != "-":
			into[name] = f.Type
		}
	}
}

func (s *shape) mapping(v any, t reflect.Type, path string) {
	m, ok := v.(map[string]any)
	if !ok {
		s.addf(path, "want an object, got %s", describe(v))
		return
	}
	for _, key := range slices.Sorted(maps.Keys(m)) {
		s.walk(m[key], t.Elem(), join(path, key))
	}
}

func (s *shape) list(v any, t reflect.Type, path string) {
	list, ok := v.([]any)
	if !ok {
		s.addf(path, "want a list, got %s", describe(v))
		return
	}
	for i, e := range list {
		s.walk(e, t.Elem(), path+"["+strconv.Itoa(i)+"]")
	}
}

func (s *shape) scalar(v any, t reflect.Type, path string) {
	switch t.Kind() {
	case reflect.String:
		if _, ok := v.(string); !ok {
			s.addf(path, "want a string, got %s%s", describe(v), quoteHint(v))
		}
	case reflect.Bool:
		if _, ok := v.(bool); !ok {
			s.addf(path, "want true or false, got %s", describe(v))
		}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		if n, ok := v.(int64); !ok {
			s.addf(path, "want a whole number, got %s", describe(v))
		} else if t.OverflowInt(n) {
			s.addf(path, "%d is out of range", n)
		}
	}
}

func quoteHint(v any) string {
	switch v.(type) {
	case bool, int64, float64:
		return " (write it in quotes)"
	}
	return ""
}

func describe(v any) string {
	switch v := v.(type) {
	case map[string]any:
		return "an object"
	case []any:
		return "a list"
	case string:
		return fmt.Sprintf("the string %.60q", v)
	case bool:
		return fmt.Sprintf("the boolean %t", v)
	}
	return fmt.Sprintf("the number %v", v)
}
