package metrics

import (
	"bufio"
	"encoding/json"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
)

// ContentType is that of the text format of Prometheus.
const ContentType = "text/plain; version=0.0.4; charset=utf-8"

// WriteText writes all figures in the text format of Prometheus, by name and by the
// values of labels. With an error that is not the writer's all are written that
// are right.
func (r *Registry) WriteText(w io.Writer) error {
	samples, err := r.gather()
	t := text{bufio.NewWriter(w)}
	for i := range samples {
		s := &samples[i]
		if i == 0 || s.name != samples[i-1].name {
			t.WriteString("# HELP " + s.name + " " + escape(helpEscaper, s.help) + "\n")
			t.WriteString("# TYPE " + s.name + " " + string(s.kind) + "\n")
		}
		if s.kind == histogram {
			t.histogram(s)
		} else {
			t.line(s.name, s.labels, "", s.value)
		}
	}
	if flushErr := t.Flush(); flushErr != nil {
		return flushErr
	}
	return err
}

// text writes lines. Its errors are those of Flush.
type text struct{ *bufio.Writer }

// histogram writes a line for each bucket, whose counts have those of the smaller
// ones in them, and the sum and number of all.
func (t text) histogram(s *sample) {
	var n uint64
	for i, count := range s.counts {
		n += count
		bound := math.Inf(1)
		if i < len(s.bounds) {
			bound = s.bounds[i]
		}
		t.line(s.name+"_bucket", s.labels, number(bound), float64(n))
	}
	t.line(s.name+"_sum", s.labels, "", s.value)
	t.line(s.name+"_count", s.labels, "", float64(n))
}

// line writes a value. le is that of a bucket, if it is one.
func (t text) line(name string, labels []string, le string, value float64) {
	t.WriteString(name)
	if le != "" {
		labels = append(labels[:len(labels):len(labels)], "le", le)
	}
	separator := "{"
	for i := 0; i < len(labels); i += 2 {
		t.WriteString(separator + labels[i] + `="` + escape(labelEscaper, labels[i+1]) + `"`)
		separator = ","
	}
	if len(labels) > 0 {
		t.WriteString("}")
	}
	t.WriteString(" " + number(value) + "\n")
}

// The characters that the format wants escaped.
var (
	helpEscaper  = strings.NewReplacer(`\`, `\\`, "\n", `\n`)
	labelEscaper = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
)

// escape makes a text one that may stand in the format, which is UTF-8.
func escape(r *strings.Replacer, s string) string { return r.Replace(strings.ToValidUTF8(s, "\ufffd")) }

// number writes a number as Prometheus reads it, whole ones without an exponent as
// far as they are exact.
func number(v float64) string {
	switch {
	case math.IsInf(v, 1):
		return "+Inf"
	case v == math.Trunc(v) && math.Abs(v) < 1<<53:
		return strconv.FormatFloat(v, 'f', -1, 64)
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}

// ServeHTTP answers a GET with WriteText's text.
func (r *Registry) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	var b strings.Builder
	if err := r.WriteText(&b); err != nil {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusInternalServerError)
		_ = json.NewEncoder(w).Encode(map[string]string{"fault_message": err.Error()})
		return
	}
	w.Header().Set("Content-Type", ContentType)
	// A client that is gone does not need the rest.
	_, _ = io.WriteString(w, b.String())
}
