"""One Engine protocol; evaluation never knows which engine ran."""
