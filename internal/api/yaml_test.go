package api

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
)

// parseYAML parses as much of YAML as openapi.yaml uses: mappings and sequences in
// blocks and in flow, plain and double-quoted scalars, and folded text (>-).
func parseYAML(t *testing.T, text string) any {
	t.Helper()
	p := &yaml{t: t, lines: strings.Split(text, "\n")}
	v := p.block(0)
	if p.skip(); p.at < len(p.lines) {
		t.Fatalf("line %d: %q is not understood", p.at+1, p.lines[p.at])
	}
	return v
}

type yaml struct {
	t     *testing.T
	lines []string
	at    int
}

// skip goes to the next line with something on it.
func (p *yaml) skip() {
	for p.at < len(p.lines) && strings.TrimSpace(p.lines[p.at]) == "" {
		p.at++
	}
}

func indentation(line string) int { return len(line) - len(strings.TrimLeft(line, " ")) }

// block parses the lines that are indented by at least so much.
func (p *yaml) block(indent int) any {
	p.skip()
	if p.at == len(p.lines) || indentation(p.lines[p.at]) < indent {
		return nil
	}
	indent = indentation(p.lines[p.at])
	if strings.HasPrefix(p.lines[p.at][indent:], "- ") {
		return p.sequence(indent)
	}
	m := make(map[string]any)
	for p.skip(); p.at < len(p.lines) && indentation(p.lines[p.at]) == indent; p.skip() {
		line := p.lines[p.at][indent:]
		p.at++
		key, rest, ok := strings.Cut(line, ":")
		if !ok || rest != "" && rest[0] != ' ' {
			p.t.Fatalf("line %d: %q is no key", p.at, line)
		}
		key = strings.Trim(key, `"`)
		if _, twice := m[key]; twice {
			p.t.Fatalf("line %d: %s comes twice", p.at, key)
		}
		switch rest = strings.TrimSpace(rest); rest {
		case "":
			m[key] = p.block(indent + 1)
		case ">-":
			m[key] = p.folded(indent + 1)
		default:
			m[key] = p.inline(rest)
		}
	}
	return m
}

// sequence parses items, the first line of each of which has a "- ".
func (p *yaml) sequence(indent int) (list []any) {
	for p.skip(); p.at < len(p.lines) && indentation(p.lines[p.at]) == indent; p.skip() {
		item := strings.TrimPrefix(p.lines[p.at][indent:], "- ")
		if strings.HasPrefix(item, "{") {
			p.at++
			list = append(list, p.inline(item))
			continue
		}
		p.lines[p.at] = strings.Repeat(" ", indent+2) + item
		list = append(list, p.block(indent+2))
	}
	return list
}

func (p *yaml) folded(indent int) string {
	var words []string
	for ; p.at < len(p.lines) && indentation(p.lines[p.at]) >= indent; p.at++ {
		words = append(words, strings.TrimSpace(p.lines[p.at]))
	}
	return strings.Join(words, " ")
}

func (p *yaml) inline(text string) any {
	if !strings.ContainsAny(text[:1], `{["`) && !strings.Contains(text, ": ") && !strings.Contains(text, " #") {
		return scalar(text) // not in flow, where commas and brackets mean something
	}
	v, rest, err := flow(text)
	if err == nil && rest != "" {
		err = fmt.Errorf("%q is left over", rest)
	}
	if err != nil {
		p.t.Fatalf("line %d: %v", p.at, err)
	}
	return v
}

// flow parses a value and returns what is behind it.
func flow(s string) (v any, rest string, err error) {
	s = strings.TrimLeft(s, " ")
	switch {
	case strings.HasPrefix(s, "{"):
		m := make(map[string]any)
		for s = strings.TrimLeft(s[1:], " "); !strings.HasPrefix(s, "}"); s = strings.TrimLeft(strings.TrimPrefix(s, ","), " ") {
			key, after, ok := strings.Cut(s, ":")
			if !ok {
				return nil, s, fmt.Errorf("%q is no mapping", s)
			}
			if m[strings.Trim(key, `"`)], s, err = flow(after); err != nil {
				return nil, s, err
			}
		}
		return m, strings.TrimLeft(s[1:], " "), nil
	case strings.HasPrefix(s, "["):
		list := []any{}
		for s = s[1:]; !strings.HasPrefix(s, "]"); s = strings.TrimPrefix(s, ",") {
			if v, s, err = flow(s); err != nil {
				return nil, s, err
			}
			list = append(list, v)
		}
		return list, strings.TrimLeft(s[1:], " "), nil
	case strings.HasPrefix(s, `"`):
		end := strings.Index(s[1:], `"`)
		if end < 0 {
			return nil, s, fmt.Errorf("%q has no end", s)
		}
		return s[1 : end+1], strings.TrimLeft(s[end+2:], " "), nil
	}
	end := strings.IndexAny(s, ",{}[]")
	if end < 0 {
		end = len(s)
	}
	word := strings.TrimSpace(s[:end])
	if word == "" || strings.Contains(word, ": ") || strings.Contains(word, " #") {
		return nil, s, fmt.Errorf("%q has to be quoted", s)
	}
	return scalar(word), s[end:], nil
}

func scalar(word string) any {
	if n, err := strconv.ParseFloat(word, 64); err == nil {
		return n
	}
	if word == "true" || word == "false" {
		return word == "true"
	}
	return word
}
