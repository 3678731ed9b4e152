package bench

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"
)

// testEnv is an Env without a folder, for what touches no files.
func testEnv() *Env { return &Env{progress: func(string, ...any) {}} }

// script makes contestants that note their turns and return round numbers.
type script struct{ turns []string }

func (s *script) contestant(name string, peer bool, failAt int, err error) contestant {
	runs := 0
	return contestant{name: name, peer: peer, run: func(context.Context) ([]float64, error) {
		s.turns = append(s.turns, name)
		runs++
		if runs == failAt {
			return nil, err
		}
		return []float64{float64(runs)}, nil
	}}
}

func oneMetric() *Result { return &Result{Metrics: []*Metric{{Name: "time", Unit: "s"}}} }

func TestCompeteAlternates(t *testing.T) {
	var s script
	r := oneMetric()
	err := r.compete(t.Context(), testEnv(), 3, s.contestant("a", false, 0, nil), s.contestant("b", false, 0, nil))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(s.turns, ""), "ab"+"ba"+"ab"+"ba"; got != want {
		t.Errorf("turns %s, want %s", got, want)
	}
	for i, name := range []string{"a", "b"} {
		got := r.Metrics[0].Series[i]
		if got.Contestant != name || !reflect.DeepEqual(got.Samples, []float64{2, 3, 4}) {
			t.Errorf("series %d is %+v, want those of %s without the warm-up", i, got, name)
		}
	}
}

func TestCompeteLeavesOutFailingPeer(t *testing.T) {
	for _, failAt := range []int{1, 3} {
		var s script
		r := oneMetric()
		err := r.compete(t.Context(), testEnv(), 3, s.contestant("a", false, 0, nil), s.contestant("peer", true, failAt, errors.New("not installed")))
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Metrics[0].Series) != 1 || len(r.Metrics[0].Series[0].Samples) != 3 {
			t.Errorf("series %+v, want three samples of a alone", r.Metrics[0].Series)
		}
		if len(r.Notes) != 1 || !strings.Contains(r.Notes[0], "peer left out: not installed") {
			t.Errorf("notes %q", r.Notes)
		}
	}
}

func TestCompeteFails(t *testing.T) {
	var s script
	cause := errors.New("broken")
	err := oneMetric().compete(t.Context(), testEnv(), 3, s.contestant("a", false, 2, cause))
	if !errors.Is(err, cause) || !strings.HasPrefix(err.Error(), "a: ") {
		t.Errorf("error %v, want %v with the contestant's name", err, cause)
	}

	two := &Result{Metrics: []*Metric{{}, {}}}
	if err := two.compete(t.Context(), testEnv(), 1, s.contestant("a", false, 0, nil)); err == nil {
		t.Error("one sample for two metrics went through")
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := oneMetric().compete(ctx, testEnv(), 1, s.contestant("a", false, 0, nil)); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v after cancelling", err)
	}
}

func TestGoals(t *testing.T) {
	metric := func(goals ...goal) *Metric {
		return &Metric{Name: "time", Unit: "ms", goals: goals, Series: []*Series{
			{Contestant: "floor", Samples: []float64{2, 2, 2}},
			{Contestant: "godwit", Samples: []float64{5, 6, 7}},
			{Contestant: "slow", Samples: []float64{30, 30, 30}},
			{Contestant: "slower", Samples: []float64{60, 60, 60}},
		}}
	}
	for _, test := range []struct {
		name string
		goal goal
		want Target
	}{
		{"at most, met", atMost("godwit", 6), Target{"godwit <= 6 ms", 6, 6, true}},
		{"at most, missed", atMost("godwit", 5.9), Target{"godwit <= 5.9 ms", 6, 5.9, false}},
		{"above, met", atMostAbove("godwit", "floor", 4), Target{"godwit <= floor + 4 ms", 4, 4, true}},
		{"above, missed", atMostAbove("godwit", "floor", 3), Target{"godwit <= floor + 3 ms", 4, 3, false}},
		{"times the best, met", atMostTimes("godwit", 0.2, "slower", "slow", "absent"), Target{"godwit <= 0.2 x slow", 0.2, 0.2, true}},
		{"times, missed", atMostTimes("godwit", 2, "floor"), Target{"godwit <= 2 x floor", 3, 2, false}},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := &Result{Metrics: []*Metric{metric(test.goal)}}
			r.conclude()
			if got := r.Metrics[0].Targets; len(got) != 1 || got[0] != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
	r := &Result{Metrics: []*Metric{metric(atMost("absent", 1), atMostAbove("godwit", "absent", 1), atMostTimes("godwit", 1, "absent"))}}
	r.conclude()
	if got := r.Metrics[0].Targets; len(got) != 0 {
		t.Errorf("targets about a contestant that did not run: %+v", got)
	}
}
