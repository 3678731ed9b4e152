package metrics

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/godwit-vmm/godwit/internal/metrics/metricstest"
)

func TestText(t *testing.T) {
	r := New()
	exits := r.Counter("godwit_vcpu_exits_total", "Exits to the VMM, by reason.", "reason", "mmio")
	r.Counter("godwit_vcpu_exits_total", "Exits to the VMM, by reason.", "reason", "io").Add(1 << 50)
	exits.Inc()
	exits.Add(2)
	memory := r.Gauge("godwit_memory_bytes", "Size.")
	memory.Set(1.5)
	memory.Add(-2)
	h := r.Histogram("godwit_snapshot_seconds", "Time that a snapshot took.", []float64{0.001, 0.5, 2}, "kind", "full")
	for _, v := range []float64{0.0005, 0.001, 0.1, 3, math.NaN(), math.Inf(1)} {
		h.Observe(v)
	}
	r.Collect(func(s *Sink) {
		s.Counter("godwit_block_bytes_total", "Bytes.", 4096, "id", "1", "op", "read")
		s.Counter("godwit_block_bytes_total", "Bytes.", 0, "id", "0", "op", "read")
		s.Histogram("godwit_block_seconds", "Time.", []float64{0.5, 2}, []uint64{3, 0, 1}, 4.5, "id", "0")
	})
	var b strings.Builder
	if err := r.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	const want = `# HELP godwit_block_bytes_total Bytes.
# TYPE godwit_block_bytes_total counter
godwit_block_bytes_total{id="0",op="read"} 0
godwit_block_bytes_total{id="1",op="read"} 4096
# HELP godwit_block_seconds Time.
# TYPE godwit_block_seconds histogram
godwit_block_seconds_bucket{id="0",le="0.5"} 3
godwit_block_seconds_bucket{id="0",le="2"} 3
godwit_block_seconds_bucket{id="0",le="+Inf"} 4
godwit_block_seconds_sum{id="0"} 4.5
godwit_block_seconds_count{id="0"} 4
# HELP godwit_memory_bytes Size.
# TYPE godwit_memory_bytes gauge
godwit_memory_bytes -0.5
# HELP godwit_snapshot_seconds Time that a snapshot took.
# TYPE godwit_snapshot_seconds histogram
godwit_snapshot_seconds_bucket{kind="full",le="0.001"} 2
godwit_snapshot_seconds_bucket{kind="full",le="0.5"} 3
godwit_snapshot_seconds_bucket{kind="full",le="2"} 3
godwit_snapshot_seconds_bucket{kind="full",le="+Inf"} 5
godwit_snapshot_seconds_sum{kind="full"} +Inf
godwit_snapshot_seconds_count{kind="full"} 5
# HELP godwit_vcpu_exits_total Exits to the VMM, by reason.
# TYPE godwit_vcpu_exits_total counter
godwit_vcpu_exits_total{reason="io"} 1125899906842624
godwit_vcpu_exits_total{reason="mmio"} 3
`
	if b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
	if _, err := metricstest.Parse(b.String()); err != nil {
		t.Error(err)
	}
}

// TestEscapes has a parser read back whatever a label or a help may be.
func TestEscapes(t *testing.T) {
	texts := []string{"", `"`, `\`, "\n", `\n`, `\"`, `a\`, `",x="`, "} 1\n# TYPE x", "ü\x00", "=", `\\"`}
	r := New()
	for i, text := range texts {
		r.Gauge("g", "help", "text", text, "more", texts[len(texts)-1-i]).Set(float64(i))
		r.Gauge(fmt.Sprintf("h%d", i), text).Set(1)
	}
	var b strings.Builder
	if err := r.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	families, err := metricstest.Parse(b.String())
	if err != nil {
		t.Fatalf("%v in\n%s", err, b.String())
	}
	for i, text := range texts {
		key := metricstest.Key("g", "text", text, "more", texts[len(texts)-1-i])
		if got, ok := families["g"].Values[key]; !ok || got != float64(i) {
			t.Errorf("%s is %v, %v, want %d", key, got, ok, i)
		}
		if f := families[fmt.Sprintf("h%d", i)]; f == nil || f.Help != text {
			t.Errorf("help %q: %+v", text, f)
		}
	}
}

func FuzzText(f *testing.F) {
	f.Add("help", "label", 1.5)
	f.Add("a\\\nb", "\"}\\", math.Inf(-1))
	f.Add("\xff", "a\xc3", 0.0)
	f.Fuzz(func(t *testing.T, help, value string, v float64) {
		r := New()
		r.Gauge("g", help, "l", value).Set(v)
		r.Histogram("h", help, Latencies(), "l", value).Observe(v)
		var b strings.Builder
		if err := r.WriteText(&b); err != nil {
			t.Fatal(err)
		}
		families, err := metricstest.Parse(b.String())
		if err != nil {
			t.Fatalf("%v in\n%s", err, b.String())
		}
		value, help = strings.ToValidUTF8(value, "\ufffd"), strings.ToValidUTF8(help, "\ufffd")
		got := families["g"].Values[metricstest.Key("g", "l", value)]
		if families["g"].Help != help || got != v && !(math.IsNaN(got) && math.IsNaN(v)) {
			t.Errorf("read back %+v", families["g"])
		}
	})
}

func TestMistakes(t *testing.T) {
	for _, tt := range []struct {
		name string
		make func(r *Registry)
		want string
	}{
		{"name", func(r *Registry) { r.Counter("a-b", "") }, `"a-b" []: this is no name`},
		{"empty name", func(r *Registry) { r.Counter("", "") }, "no name for a metric"},
		{"digit first", func(r *Registry) { r.Gauge("1a", "") }, "no name for a metric"},
		{"label", func(r *Registry) { r.Gauge("a", "", "b:c", "x") }, `"b:c" is no name for a label`},
		{"reserved label", func(r *Registry) { r.Gauge("a", "", "__b", "x") }, `"__b" is no name for a label`},
		{"le", func(r *Registry) { r.Histogram("a", "", nil, "le", "1") }, `"le" is no name for a label`},
		{"label without a value", func(r *Registry) { r.Gauge("a", "", "b") }, "has no value"},
		{"label twice", func(r *Registry) { r.Gauge("a", "", "b", "1", "b", "2") }, `label "b" is there twice`},
		{"bounds", func(r *Registry) { r.Histogram("a", "", []float64{1, 1}) }, "not ascending"},
		{"infinite bound", func(r *Registry) { r.Histogram("a", "", []float64{1, math.Inf(1)}) }, "not ascending"},
		{"counts", func(r *Registry) {
			r.Collect(func(s *Sink) { s.Histogram("a", "", []float64{1}, []uint64{1}, 1) })
		}, "one less than counts"},
		{"twice", func(r *Registry) { r.Gauge("good", "") }, "it is there twice"},
		{"twice, collected", func(r *Registry) { r.Collect(func(s *Sink) { s.Gauge("good", "", 7) }) }, "it is there twice"},
		{"two kinds", func(r *Registry) { r.Counter("good", "", "x", "y") }, "it is a gauge and a counter"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := New()
			r.Gauge("good", "A good one.").Set(1)
			tt.make(r)
			var b strings.Builder
			if err := r.WriteText(&b); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %s", err, tt.want)
			}
			if want := "# HELP good A good one.\n# TYPE good gauge\ngood 1\n"; b.String() != want {
				t.Errorf("the good one: got\n%s", b.String())
			}
			answer := httptest.NewRecorder()
			r.ServeHTTP(answer, nil)
			if answer.Code != 500 || !strings.Contains(answer.Body.String(), "fault_message") {
				t.Errorf("status %d, %s", answer.Code, answer.Body)
			}
		})
	}
}

func TestServe(t *testing.T) {
	r := New()
	r.Counter("x_total", "X.").Inc()
	r.Collect(Process)
	answer := httptest.NewRecorder()
	r.ServeHTTP(answer, nil)
	families, err := metricstest.Parse(answer.Body.String())
	if err != nil || answer.Code != 200 || answer.Header().Get("Content-Type") != ContentType {
		t.Fatalf("status %d, %v, %v", answer.Code, answer.Header(), err)
	}
	if got := families["process_resident_memory_bytes"].Values["process_resident_memory_bytes[]"]; got < 1<<20 || got > 1<<40 {
		t.Errorf("resident memory %v", got)
	}
	if families["process_cpu_seconds_total"].Kind != "counter" {
		t.Errorf("got %+v", families["process_cpu_seconds_total"])
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, os.ErrClosed }

func TestWriterFails(t *testing.T) {
	r := New()
	r.Counter("x_total", "X.")
	if err := r.WriteText(failingWriter{}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

// TestConcurrent updates from all sides while the figures are read.
func TestConcurrent(t *testing.T) {
	const workers, each = 4, 2000
	r := New()
	c, g, h := r.Counter("c_total", ""), r.Gauge("g", ""), r.Histogram("h", "", []float64{1})
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range each {
				c.Inc()
				g.Add(0.5)
				h.Observe(2)
			}
		})
	}
	for range 100 {
		if err := r.WriteText(io.Discard); err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()
	if c.Value() != workers*each || g.Value() != workers*each/2 {
		t.Errorf("counted %d, %v", c.Value(), g.Value())
	}
	var b strings.Builder
	if r.WriteText(&b); !strings.Contains(b.String(), "h_sum 16000\nh_count 8000\n") {
		t.Errorf("got\n%s", b.String())
	}
}

func TestUpdatesDoNotAllocate(t *testing.T) {
	r := New()
	c, g, h := r.Counter("c_total", ""), r.Gauge("g", ""), r.Histogram("h", "", Latencies())
	if n := testing.AllocsPerRun(1000, func() { c.Add(2); g.Add(1); h.Observe(0.01) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestLatencies(t *testing.T) {
	bounds := Latencies()
	if len(bounds) != 22 || bounds[0] != 1e-6 || bounds[21] != 10 || !increasing(bounds) {
		t.Errorf("bounds %v", bounds)
	}
}

func BenchmarkUpdate(b *testing.B) {
	r := New()
	c, h := r.Counter("c_total", ""), r.Histogram("h", "", Latencies())
	b.Run("counter", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			c.Inc()
		}
	})
	b.Run("histogram", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			h.Observe(25e-6)
		}
	})
}
