package api

import "errors"

var errNoMetrics = errors.New("this guest's process writes no metrics to files: read GET /metrics")

func (s *Server) putMetrics(r *request) (any, error) {
	var m Metrics
	if err := r.read(&m); err != nil {
		return nil, err
	}
	return nil, s.setMetrics(m)
}

func (s *Server) setMetrics(m Metrics) error {
	return within("Metrics", beforeStart(s.vm, func() error {
		switch {
		case s.o.MetricsFile == nil:
			return errNoMetrics
		case m.Path == "":
			return errors.New("metrics_path is empty")
		}
		if !s.metrics.CompareAndSwap(nil, &m) {
			return errors.New("the metrics have a file already")
		}
		err := s.o.MetricsFile(m.Path)
		if err != nil {
			s.metrics.Store(nil)
		}
		return err
	}))
}

func (s *Server) flushMetrics() error {
	if s.o.FlushMetrics == nil {
		return errNoMetrics
	}
	return s.o.FlushMetrics()
}
