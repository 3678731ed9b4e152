package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/godwit-vmm/godwit/internal/vmm"
)

// document is openapi.yaml, against which all requests of the tests are checked.
type document struct {
	root map[string]any

	mu sync.Mutex
	// seen has the operations and statuses that the tests have come across.
	seen map[string]bool
}

func parseDocument(t *testing.T) *document {
	t.Helper()
	root, _ := parseYAML(t, string(Document)).(map[string]any)
	return &document{root: root, seen: make(map[string]bool)}
}

// at follows keys, and references.
func (d *document) at(v any, keys ...string) map[string]any {
	for i := 0; ; i++ {
		m, _ := v.(map[string]any)
		if to, ok := m["$ref"].(string); ok {
			m = d.at(d.root, strings.Split(strings.TrimPrefix(to, "#/"), "/")...)
		}
		if i == len(keys) || m == nil {
			return m
		}
		v = m[keys[i]]
	}
}

// template is the path of the document for a request's path.
func template(path string) string {
	of, id := split(path)
	switch {
	case id == "":
	case of == "/drives/":
		return of + "{drive_id}"
	case of == "/network-interfaces/":
		return of + "{iface_id}"
	}
	path, _, _ = strings.Cut(path, "?")
	return path
}

// check says what of an exchange is not as the document has it.
func (d *document) check(method, path, body string, status int, answer []byte) error {
	operation := d.at(d.root, "paths", template(path), strings.ToLower(method))
	if operation == nil {
		if status != 400 {
			return fmt.Errorf("status %d of something that is not in the document", status)
		}
		return nil
	}
	response := d.at(operation, "responses", fmt.Sprint(status))
	if response == nil {
		return fmt.Errorf("status %d is not in the document", status)
	}
	d.mu.Lock()
	d.seen[fmt.Sprint(method, " ", template(path), " ", status)] = true
	d.mu.Unlock()
	schema := d.at(response, "content", "application/json", "schema")
	lines := d.at(response, "content", "application/x-ndjson", "schema")
	switch {
	case d.at(response, "content") == nil:
		if len(answer) > 0 {
			return fmt.Errorf("an answer where there is to be none: %s", answer)
		}
	case schema != nil:
		if err := d.checkJSON(schema, answer); err != nil {
			return fmt.Errorf("the answer %s: %w", answer, err)
		}
	case lines != nil:
		for line := range bytes.Lines(answer) {
			if err := d.checkJSON(lines, line); err != nil {
				return fmt.Errorf("the line %s: %w", line, err)
			}
		}
	}
	// A request that the document does not allow is refused.
	schema = d.at(operation, "requestBody", "content", "application/json", "schema")
	if schema == nil || status >= 400 {
		return nil
	}
	if err := d.checkJSON(schema, []byte(body)); err != nil {
		return fmt.Errorf("status %d of a request with %w", status, err)
	}
	return nil
}

func (d *document) checkJSON(schema map[string]any, text []byte) error {
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		return err
	}
	return d.checkValue(schema, v, "body")
}

// checkValue checks a value against a schema.
func (d *document) checkValue(schema map[string]any, v any, where string) error {
	if enum, ok := schema["enum"].([]any); ok && !slices.Contains(enum, v) {
		return fmt.Errorf("%s: %v is none of %v", where, v, enum)
	}
	fits := false
	switch schema["type"] {
	case "object":
		return d.checkObject(schema, v, where)
	case "array":
		list, ok := v.([]any)
		for i, item := range list {
			if err := d.checkValue(d.at(schema, "items"), item, fmt.Sprintf("%s[%d]", where, i)); err != nil {
				return err
			}
		}
		fits = ok
	case "string":
		_, fits = v.(string)
	case "boolean":
		_, fits = v.(bool)
	case "integer":
		n, ok := v.(float64)
		low, isLow := schema["minimum"].(float64)
		high, isHigh := schema["maximum"].(float64)
		fits = ok && n == math.Trunc(n) && (!isLow || n >= low) && (!isHigh || n <= high)
	}
	if !fits {
		return fmt.Errorf("%s: %v is no %v of the document: %v", where, v, schema["type"], schema)
	}
	return nil
}

func (d *document) checkObject(schema map[string]any, v any, where string) error {
	object, ok := v.(map[string]any)
	if !ok {
		return fmt.Errorf("%s: %v is no object", where, v)
	}
	required, _ := schema["required"].([]any)
	for _, name := range required {
		if _, ok := object[name.(string)]; !ok {
			return fmt.Errorf("%s: %v is missing", where, name)
		}
	}
	properties := d.at(schema, "properties")
	for name, value := range object {
		property := d.at(properties, name)
		if property == nil {
			return fmt.Errorf("%s: %s is not in the document", where, name)
		}
		if err := d.checkValue(property, value, where+"."+name); err != nil {
			return err
		}
	}
	return nil
}

// TestDocument compares the document with what the server has.
func TestDocument(t *testing.T) {
	d := parseDocument(t)
	s := New(vmm.New(t.Context(), vmm.Options{}, Defaults()), Options{})
	known := []string{"GET /console", "GET /events", "GET /metrics", "GET /openapi.yaml", "PUT /migration"}
	for at := range s.routes() {
		path := at.path
		switch path {
		case "/drives/", "/network-interfaces/":
			path = template(path + "x")
		}
		known = append(known, at.method+" "+path)
	}
	known = slices.DeleteFunc(known, func(r string) bool {
		_, path, _ := strings.Cut(r, " ")
		return slices.Contains([]string{"/cpu-config", "/mmds", "/mmds/config", "/pmem/", "/hotplug/memory", "/serial"}, path) ||
			strings.HasPrefix(path, "/balloon/hinting/")
	})
	var documented []string
	for path, item := range d.at(d.root, "paths") {
		for method, operation := range item.(map[string]any) {
			if method == "parameters" {
				continue
			}
			documented = append(documented, strings.ToUpper(method)+" "+path)
			if d.at(operation)["summary"] == nil || d.at(operation, "responses", "400") == nil {
				t.Errorf("%s %s: no summary, or no status 400", method, path)
			}
		}
	}
	slices.Sort(known)
	slices.Sort(documented)
	if !slices.Equal(known, documented) {
		t.Errorf("the server has\n%v\nthe document has\n%v", known, documented)
	}
	checkReferences(t, d)
}

// checkReferences finds references to nothing, schemas that nobody refers to, and
// objects that leave open what they have.
func checkReferences(t *testing.T, d *document) {
	used := make(map[string]bool)
	var walk func(where string, v any)
	walk = func(where string, v any) {
		switch v := v.(type) {
		case map[string]any:
			if to, ok := v["$ref"].(string); ok {
				used[to] = true
				if d.at(v) == nil {
					t.Errorf("%s refers to %s, which is not there", where, to)
				}
			}
			if v["type"] == "object" && v["additionalProperties"] != false {
				t.Errorf("%s leaves open what fields it has", where)
			}
			for key, value := range v {
				walk(where+"/"+key, value)
			}
		case []any:
			for i, value := range v {
				walk(fmt.Sprint(where, "/", i), value)
			}
		}
	}
	walk("", d.root)
	for name := range maps.Keys(d.at(d.root, "components", "schemas")) {
		if !used["#/components/schemas/"+name] {
			t.Errorf("nothing refers to schema %s", name)
		}
	}
}

// TestSchemas compares the schemas of answers that a test may not see whole with the
// types that they are made of.
func TestSchemas(t *testing.T) {
	d := parseDocument(t)
	compareSchema(t, d, d.at(d.root, "components", "schemas", "MigrationStatus"), reflect.TypeFor[MigrationStatus]())
}

func compareSchema(t *testing.T, d *document, schema map[string]any, of reflect.Type) {
	t.Helper()
	var names []string
	for _, f := range reflect.VisibleFields(of) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous {
			continue // its fields come by themselves
		}
		names = append(names, name)
		field := f.Type
		if field.Kind() == reflect.Pointer {
			field = field.Elem()
		}
		if field.Kind() == reflect.Struct {
			compareSchema(t, d, d.at(schema, "properties", name), field)
		}
	}
	slices.Sort(names)
	if documented := slices.Sorted(maps.Keys(d.at(schema, "properties"))); !slices.Equal(names, documented) {
		t.Errorf("%v has %v, the document %v", of, names, documented)
	}
}
