// Package metricstest reads for tests what a program says of its metrics.
package metricstest

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Family is what a parser finds of a metric.
type Family struct {
	Help, Kind string
	// Values are by name and labels: see Key.
	Values map[string]float64
	// Labels are the names of the labels of each value, but for le of a histogram.
	Labels []string
}

// Key is how a value is found: the name of the metric, and names and values of labels
// by turns.
func Key(name string, labels ...string) string { return fmt.Sprintf("%s%q", name, labels) }

// Parse reads the text format of Prometheus, strictly: each metric once, HELP and
// TYPE before its values, and nothing between those.
func Parse(text string) (map[string]*Family, error) {
	families := make(map[string]*Family)
	var current *Family
	var currentName string
	if text != "" && !strings.HasSuffix(text, "\n") {
		return nil, fmt.Errorf("the last line has no end")
	}
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if rest, ok := strings.CutPrefix(line, "# HELP "); ok {
			name, help, _ := strings.Cut(rest, " ")
			if families[name] != nil {
				return nil, fmt.Errorf("%s is there twice", name)
			}
			help, err := unescape(help, "")
			if err != nil {
				return nil, fmt.Errorf("%q: %w", line, err)
			}
			current, currentName = &Family{Help: help, Values: make(map[string]float64)}, name
			families[name] = current
			continue
		}
		if rest, ok := strings.CutPrefix(line, "# TYPE "); ok {
			name, kind, _ := strings.Cut(rest, " ")
			if name != currentName || current.Kind != "" || len(current.Values) > 0 {
				return nil, fmt.Errorf("%q is not where it belongs", line)
			}
			current.Kind = kind
			continue
		}
		name, labels, value, err := parseValue(line)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", line, err)
		}
		base := name
		if current != nil && current.Kind == "histogram" {
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				base = strings.TrimSuffix(base, suffix)
			}
		}
		if current == nil || base != currentName || current.Kind == "" {
			return nil, fmt.Errorf("%q is not where it belongs", line)
		}
		key := Key(name, labels...)
		if _, twice := current.Values[key]; twice {
			return nil, fmt.Errorf("%s is there twice", key)
		}
		current.Values[key] = value
		for i := 0; i < len(labels); i += 2 {
			if l := labels[i]; !slices.Contains(current.Labels, l) && (current.Kind != "histogram" || l != "le") {
				current.Labels = append(current.Labels, l)
			}
		}
	}
	return families, nil
}

// parseValue reads a line such as NAME{LABEL="VALUE",...} NUMBER.
func parseValue(line string) (name string, labels []string, value float64, _ error) {
	end := strings.IndexAny(line, "{ ")
	if end <= 0 {
		return "", nil, 0, fmt.Errorf("no name")
	}
	name, rest := line[:end], line[end:]
	if rest[0] == '{' {
		rest = rest[1:]
		for {
			label, after, ok := strings.Cut(rest, `="`)
			if !ok {
				return "", nil, 0, fmt.Errorf("a label without a value")
			}
			end := 0
			for end < len(after) && after[end] != '"' {
				if after[end] == '\\' {
					end++
				}
				end++
			}
			if end+1 >= len(after) {
				return "", nil, 0, fmt.Errorf("a value without end")
			}
			text, err := unescape(after[:end], `"`)
			if err != nil {
				return "", nil, 0, err
			}
			labels = append(labels, label, text)
			separator := after[end+1]
			rest = after[end+2:]
			if separator == '}' {
				break
			}
			if separator != ',' {
				return "", nil, 0, fmt.Errorf("labels with %q between", separator)
			}
		}
	}
	number, ok := strings.CutPrefix(rest, " ")
	if !ok {
		return "", nil, 0, fmt.Errorf("no number")
	}
	if number == "+Inf" {
		return name, labels, math.Inf(1), nil
	}
	value, err := strconv.ParseFloat(number, 64)
	return name, labels, value, err
}

// unescape undoes escapes of the backslash, the end of line, and of more.
func unescape(s, more string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b.WriteByte(s[i])
			continue
		}
		i++
		switch {
		case i == len(s):
			return "", fmt.Errorf("an escape of nothing")
		case s[i] == 'n':
			b.WriteByte('\n')
		case s[i] == '\\', strings.IndexByte(more, s[i]) >= 0:
			b.WriteByte(s[i])
		default:
			return "", fmt.Errorf("an escape of %q", s[i])
		}
	}
	return b.String(), nil
}
