package bench

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"text/tabwriter"
)

// WriteTable prints the report for people.
func (r *Report) WriteTable(w io.Writer) error {
	t := table{w: w}
	h := r.Host
	t.printf("godwit %s, %s\n", r.Commit, r.Date.Format("2006-01-02 15:04 MST"))
	t.printf("%s, %d CPUs, %d MiB, Linux %s, %s, KVM: %s\n", h.CPU, h.CPUs, h.MemoryMiB, h.Kernel, h.Go, h.KVM)
	if h.busy() {
		t.printf("the machine is busy (load %.1f): figures are high and spread\n", h.Load)
	}
	if r.Quick {
		t.printf("a quick run: rough figures\n")
	}
	for _, c := range r.Cases {
		t.printf("\n%s: %s\n", c.Name, c.What)
		switch {
		case c.Skipped != "":
			t.printf("  skipped: %s\n", c.Skipped)
		case c.Error != "":
			t.printf("  failed: %s\n", c.Error)
		default:
			t.result(c.Result)
		}
	}
	return t.err
}

// table keeps the first error of a sequence of prints.
type table struct {
	w   io.Writer
	err error
}

func (t *table) printf(format string, args ...any) {
	if t.err == nil {
		_, t.err = fmt.Fprintf(t.w, format, args...)
	}
}

func (t *table) result(r *Result) {
	t.columns(func(c *table) {
		for i, m := range r.Metrics {
			head := "\t\t\t\t\t"
			if i == 0 {
				head = "median\tmin\tquartiles\tmax\tagainst " + m.reference() + "\t"
			}
			c.printf("  %s, %s\t%s\n", m.Name, m.Unit, head)
			for _, s := range m.Series {
				c.series(s)
			}
		}
	})
	if len(r.Parts) > 0 {
		t.printf("  where godwit's time goes, %s\n", r.Metrics[0].Unit)
		t.columns(func(c *table) {
			for _, p := range r.Parts {
				c.printf("    %s\t%s\t\n", p.Name, number(p.Value))
			}
		})
	}
	for _, m := range r.Metrics {
		for _, g := range m.Targets {
			verdict := "miss"
			if g.Met {
				verdict = "pass"
			}
			t.printf("  %s: %s: %s (%s of at most %s)\n", verdict, m.Name, g.What, number(g.Value), number(g.Limit))
		}
	}
	for _, n := range r.Notes {
		t.printf("  note: %s\n", n)
	}
}

// reference names what ratios are relative to.
func (m *Metric) reference() string {
	if len(m.Series) == 0 {
		return ""
	}
	return m.Series[0].Contestant
}

func (t *table) series(s *Series) {
	against := ""
	if s.Ratio != nil {
		sign := ""
		if *s.Difference >= 0 {
			sign = "+"
		}
		against = fmt.Sprintf("%s x, %s%s", number(*s.Ratio), sign, number(*s.Difference))
	}
	u := s.Summary
	t.printf("    %s\t%s\t%s\t%s - %s\t%s\t%s\t\n", s.Contestant, number(u.Median), number(u.Min), number(u.Q1), number(u.Q3), number(u.Max), against)
}

// columns aligns what print writes with a tab behind each cell.
func (t *table) columns(print func(*table)) {
	var aligned bytes.Buffer
	tw := tabwriter.NewWriter(&aligned, 0, 0, 2, ' ', 0)
	c := table{w: tw}
	print(&c)
	if err := errors.Join(c.err, tw.Flush()); err != nil && t.err == nil {
		t.err = err
	}
	for line := range strings.Lines(aligned.String()) {
		t.printf("%s\n", strings.TrimRight(line, " \n"))
	}
}

// number shows three significant digits, and all of those before the point.
func number(v float64) string {
	digits := 0
	if a := math.Abs(v); a != 0 && a < 100 {
		digits = min(3, max(0, 2-int(math.Floor(math.Log10(a)))))
	}
	return strconv.FormatFloat(v, 'f', digits, 64)
}
