package bench

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"
)

func TestChoose(t *testing.T) {
	all := []Case{{Name: "a"}, {Name: "b"}, {Name: "long", Explicit: true}}
	for _, test := range []struct {
		only []string
		want string
	}{
		{nil, "a b"},
		{[]string{"b"}, "b"},
		{[]string{"long", "a"}, "a long"},
	} {
		got, err := choose(all, test.only)
		if err != nil {
			t.Fatal(err)
		}
		if s := strings.Join(names(got), " "); s != test.want {
			t.Errorf("only %v: %q, want %q", test.only, s, test.want)
		}
	}
	if _, err := choose(all, []string{"a", "c"}); err == nil || !strings.Contains(err.Error(), `no benchmark "c": there are a, b, long`) {
		t.Errorf("error %v for an unknown name", err)
	}
}

func TestRunCaseOutcomes(t *testing.T) {
	for _, test := range []struct {
		name                string
		err                 error
		skipped, errMessage string
	}{
		{"good", nil, "", ""},
		{"skip", Skip("no %s", "cc"), "no cc", ""},
		{"fail", errors.New("broken"), "", "broken"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var dir string
			c := Case{Name: test.name, Run: func(_ context.Context, e *Env) (*Result, error) {
				dir = e.Dir
				if test.err != nil {
					return nil, test.err
				}
				return &Result{Metrics: []*Metric{{Series: []*Series{{Samples: []float64{3}}}}}}, nil
			}}
			got, err := runCase(t.Context(), c, Options{}, func(string, ...any) {})
			if err != nil || got.Skipped != test.skipped || got.Error != test.errMessage {
				t.Errorf("got %+v, %v", got, err)
			}
			if test.err == nil && got.Metrics[0].Series[0].Summary.Median != 3 {
				t.Errorf("no summary: %+v", got.Metrics[0].Series[0])
			}
			if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("folder %q is left behind", dir)
			}
		})
	}
}

func TestRunEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	c := Case{Run: func(ctx context.Context, _ *Env) (*Result, error) {
		cancel()
		return nil, ctx.Err()
	}}
	if _, err := runCase(ctx, c, Options{}, func(string, ...any) {}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want that of the context", err)
	}
}

func TestProgress(t *testing.T) {
	var b bytes.Buffer
	p := progress{w: &b, prefix: "1/2 start"}
	p.show("round %d", 3)
	p.clear()
	if got, want := b.String(), eraseLine+"1/2 start: round 3"+eraseLine; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	silent := progress{}
	silent.show("nothing")
	silent.clear()
}
